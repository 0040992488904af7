//! The ordered transactional store that metadata and managers keep everything in.
//!
//! | module | says |
//! |---|---|
//! | [`contract`] | [`KvEngine`] and [`Transaction`]: what every backend owes |

pub mod contract;

pub use contract::*;
