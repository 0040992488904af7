//! The TCP driver over real sockets: two of them on one thread, or one against a raw socket that behaves badly.

mod frames;
mod hostile;
mod lifecycle;
mod pressure;
mod world;
