//! Versions of the protocol and what changed in each.
//!
//! | version | since |
//! |---|---|
//! | 1 | the first release |

/// The frame version that this build speaks.
pub const FRAME_VERSION: u8 = 1;
/// The oldest frame version that this build still understands.
pub const FRAME_VERSION_MIN: u8 = 1;
