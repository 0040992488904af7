//! The native client against servers that can be told to misbehave.

mod doors;
mod fake;
mod hedges;
mod reads;
mod sessions;
mod writes;
