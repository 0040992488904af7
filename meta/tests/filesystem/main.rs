//! The namespace's operations, over stores in memory, without a server. One program, so that what is generic over the store is compiled once.

mod attributes;
mod concurrent;
mod damage;
mod exactly_once;
mod inline;
mod lengths;
mod model;
mod operations;
mod support;
mod trash;
mod watch;
