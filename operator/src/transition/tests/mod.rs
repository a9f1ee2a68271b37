mod committed;
mod fixture;
mod freezing;
mod handover;
mod pending;
mod preparing;
mod properties;
mod rolling_back;
