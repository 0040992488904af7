//! Measuring corefs and what is below it: one shape of report for everything.
//!
//! | module | is |
//! |---|---|
//! | [`args`] | the flags of `corefs perf`, sizes, and the runs they ask for |
//! | [`workload`] | which offset, when, and which bytes; pure |
//! | [`histogram`], [`series`] | latencies of a core, in all and by the second, merged at the end |
//! | [`driver`], [`live`] | lanes that keep operations in flight, the conductor that adds up, and how it goes meanwhile |
//! | [`files`] | the files of a run |
//! | [`disk`], [`extents`], [`fio`] | the raw ceiling, and whether to believe it |
//! | [`bare`] | the transport alone, and with a disk behind it: what corefs is compared with |
//! | [`native`] | runs through the native client |
//! | [`mounted`] | runs through a mounted file system |
//! | [`names`] | many files made, looked at, listed and removed, by either, or on a local disk |
//! | [`compare`] | several measurements in turns |
//! | [`report`], [`draw`] | rows, JSON, tables and histograms for a terminal |
//! | [`outputs`], [`csv`], [`hdr_log`], [`html`] | the same for spreadsheets, HdrHistogram's tools and browsers |
//! | [`diff`] | what has changed between two reports |
//! | [`crowd`] | connections that ask for nothing |
//! | [`cpu`], [`machine`] | CPU time of processes; what it was measured on |
//! | [`progress`] | bars |

pub mod args;
pub mod bare;
mod bytes;
pub mod command;
pub mod compare;
pub mod cpu;
pub mod crowd;
pub mod csv;
pub mod diff;
pub mod disk;
pub mod draw;
pub mod driver;
pub mod extents;
pub mod files;
pub mod fio;
pub mod hdr_log;
pub mod histogram;
pub mod html;
pub mod live;
pub mod machine;
pub mod mounted;
pub mod names;
pub mod native;
pub mod outputs;
pub mod progress;
pub mod report;
pub mod series;
pub mod workload;

pub use command::run;
pub use driver::Live;
