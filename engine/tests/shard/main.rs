//! Real shards over real sockets and files.

mod chains;
mod faults;
mod harness;
mod single;
