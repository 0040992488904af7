//! The operations of the namespace, one file each. What each reads, conflicts on and writes:
//!
//! | operation | reads | conflicts | writes |
//! |---|---|---|---|
//! | lookup, get_attr, read_dir, read_link, statfs | snapshot | none | none |
//! | create | parent, entry | parent, entry | inode, entry, parent's times and counts |
//! | open, close, sync_length | inode, session | both | session, length and times |
//! | append | inode, sessions of the inode | all | the session |
//! | set_attr | inode; for a length the sessions | both | inode |
//! | get_xattr, list_xattr, get_lock | snapshot | none | none |
//! | set_xattr, remove_xattr | inode, attribute, the others | all | attribute, inode |
//! | set_lock | inode, its locks | both | its locks |
//! | link | inode, parent, entry | all | link count, entry, parent's times and counts |
//! | unlink | parent, entry, inode | all | link count or garbage row; entry; parent's times and counts |
//! | rmdir | parent, entry, inode, first child | all, every child | all gone, parent's times and counts |
//! | rename | both parents, entries and inodes; for a directory every ancestor | all | entries, inodes, parents' times and counts |
//!
//! "Parent" in a conflict is its inode's record, which its own entries never change: two creates in one directory
//! don't conflict, but a create and the directory's removal do. Every mutating operation reads and writes the row of
//! its request too (see [`once`](crate::once)).

mod append;
mod close;
mod create;
mod end_sessions;
mod get_attr;
mod get_lock;
mod get_xattr;
mod link;
mod list_xattr;
mod lookup;
mod open;
mod read_dir;
mod read_link;
mod remove_xattr;
pub mod rename;
mod rmdir;
pub mod set_attr;
mod set_lock;
pub mod set_xattr;
mod statfs;
mod sync_length;
mod unlink;
