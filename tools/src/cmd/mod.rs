//! One file for each subcommand.

pub mod chain;
pub mod config;
pub mod disk;
pub mod doctor;
pub mod fs;
pub mod fsck;
pub mod kv;
pub mod meta;
pub mod mgmtd;
pub mod mount;
pub mod moves;
pub mod node;
pub mod perf;
pub mod quickstart;
pub mod scrub;
pub mod status;
pub mod storage;
pub mod up;
