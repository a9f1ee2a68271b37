//! The benchmarks on the lab: of the freeze, and in [`restart`] of restarts in place.
//!
//! Reading order: [`case`] is one thing to measure and [`matrix`] all of them, [`measure`] runs one with what [`moved`]
//! and [`bare`] see of a single move, [`results`] makes figures of that. [`transfer`] measures the transfer alone. [`partial`] is what
//! an interrupted run leaves for the next. [`report`], [`plot`] and [`gate`] only ever read figures that were kept, so that no number
//! in a document was not measured; [`docs`] keeps them beside the document.
//!
//! [`table`] prints the figures of both.
//!
//! Every freeze is the longest gap that the program's own ticks show. Nothing here times a move from outside.

pub mod bare;
pub mod case;
pub mod docs;
pub mod gate;
pub mod goals;
pub mod machine;
pub mod markdown;
pub mod matrix;
pub mod measure;
pub mod moved;
pub mod partial;
pub mod plot;
pub mod progress;
pub mod report;
pub mod resident;
pub mod resources;
pub mod restart;
pub mod results;
pub mod spent;
pub mod status;
pub mod store;
pub mod table;
pub mod throughput;
pub mod transfer;
