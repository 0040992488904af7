//! Made by ci/generate from wire/schemas; never edited.
pub mod kv;
pub mod meta;
pub mod mgmtd;
pub mod process;
pub mod storage;
