//! The native client against servers that can be told to misbehave.

mod doors;
mod fake;
mod hedges;
mod inline;
mod reads;
mod sessions;
mod writes;
