//! The mount: POSIX programs on corefs.
//!
//! Threads of the kernel protocol only hand requests over: each becomes a future on the client shard that owns the
//! inode, which answers the kernel itself. Everything that belongs to one inode happens on one shard.
//!
//! | module | is |
//! |---|---|
//! | [`mount`] | mounting, waiting, unmounting, and what can be wrong with either |
//! | `fs` | the kernel's requests, each delegated to the client |
//! | [`consistency`] | when changes made elsewhere are seen here, and the other way round |
//! | `handles` | open files and directories, by the number the kernel knows them by |
//! | `directory` | a directory being read, and what its offsets mean |
//! | `locks` | who may hold locks, and whether somebody who waits for one still wants it |
//! | `marks` | what was heard lately: which inodes have no extended attributes, and what lengths the kernel knows |
//! | `notices` | what the kernel is told without having asked |
//! | `attr` | attributes between the two forms |
//! | `errno` | the only place where errors become errno values |

mod attr;
pub mod consistency;
mod directory;
mod errno;
mod fs;
mod handles;
mod locks;
mod marks;
pub mod mount;
mod notices;

pub use consistency::{BELIEVED, Consistency};
pub use mount::{MountOptions, Mounted, mount, unmount};
