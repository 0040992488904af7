//! Measuring corefs and what is below it: one shape of report for everything.
//!
//! | module | is |
//! |---|---|
//! | [`args`] | the flags of `corefs perf`, sizes, and the runs they ask for |
//! | [`workload`] | which offset, when, and which bytes; pure |
//! | [`histogram`] | latencies of a core, merged at the end |
//! | [`driver`] | lanes that keep operations in flight, and the conductor that adds up |
//! | [`disk`], [`extents`], [`fio`] | the raw ceiling, and whether to believe it |
//! | [`native`] | runs through the native client |
//! | [`mounted`] | runs through a mounted file system |
//! | [`names`] | many files made, looked at, listed and removed, by either, or on a local disk |
//! | [`compare`] | several measurements in turns |
//! | [`report`], [`draw`] | rows, JSON, tables and histograms |
//! | [`cpu`], [`machine`] | CPU time of processes; what it was measured on |
//! | [`progress`] | bars |

pub mod args;
mod bytes;
pub mod command;
pub mod compare;
pub mod cpu;
pub mod disk;
pub mod draw;
pub mod driver;
pub mod extents;
pub mod fio;
pub mod histogram;
pub mod machine;
pub mod mounted;
pub mod names;
pub mod native;
pub mod progress;
pub mod report;
pub mod workload;

pub use command::{present, run};
pub use driver::Live;
