//! What lately changed by way of this server, for clients that believe what they heard for long.
//!
//! A client that watches all metadata servers hears of every change that others make, and so may believe names and attributes until it does
//! ([ADR 0024](../../docs/adr/0024-remembered-until-told.md)). Nothing of it is stored: a server that starts knows of no changes, and says so.
//!
//! | module | is |
//! |---|---|
//! | [`changes`] | the last changes, by number, and what of them is told to whom |
//! | [`noting`] | the store as the namespace sees it: what a transaction changed is noted when it has been committed |

pub mod changes;
pub mod noting;

pub use changes::{Changes, Told, What};
pub use noting::Noting;
