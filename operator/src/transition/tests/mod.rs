mod fixture;
mod phases;
mod properties;
