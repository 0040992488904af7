//! Real shards over real sockets and files.

mod chains;
mod faults;
mod filling;
mod harness;
mod single;
