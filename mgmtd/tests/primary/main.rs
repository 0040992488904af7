//! A leading manager's operations, over stores and a virtual clock, without a process. One program, so that what is generic over the store and
//! the clock is compiled once.

mod formation;
mod growth;
mod leadership;
mod requests;
mod storm;
mod support;
