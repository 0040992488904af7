//! Open files and directories of a mount, by the number the kernel knows them by. The table lives on the thread of the mount's
//! one client shard, so nothing here is shared. (A create runs where its parent lives, a read where its file lives: with
//! several shards numbers would have to say where their file is, which is why `mount` takes a pool of one.)

use crate::directory::Directory;
use corefs_client::{Credentials, File};
use corefs_wire::{Error, ErrorCode, InodeId, Result};
use fuser::FileHandle;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// What an open number stands for.
enum Open {
    File(Rc<File>),
    /// Absent while a request is working on it: the kernel sends one at a time for an open directory.
    Directory(Option<Box<Directory>>),
}

#[derive(Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Open>,
}

thread_local! {
    static TABLE: RefCell<Table> = RefCell::default();
}

fn insert(open: Open) -> FileHandle {
    TABLE.with_borrow_mut(|table| {
        // Numbers aren't reused, so that a stale one can never name another file.
        table.next += 1;
        table.open.insert(table.next, open);
        FileHandle(table.next)
    })
}

fn bad(handle: FileHandle) -> Error {
    Error::new(ErrorCode::NoSuchSession, format!("no open file has the number {}", handle.0))
}

pub fn insert_file(file: File) -> FileHandle {
    insert(Open::File(Rc::new(file)))
}

pub fn file(handle: FileHandle) -> Result<Rc<File>> {
    TABLE.with_borrow(|table| match table.open.get(&handle.0) {
        Some(Open::File(file)) => Ok(Rc::clone(file)),
        _ => Err(bad(handle)),
    })
}

/// Takes a file out of the table; whoever still works on it keeps it until they're done.
pub fn remove_file(handle: FileHandle) -> Result<Rc<File>> {
    TABLE.with_borrow_mut(|table| match table.open.remove(&handle.0) {
        Some(Open::File(file)) => Ok(file),
        Some(other) => {
            table.open.insert(handle.0, other);
            Err(bad(handle))
        }
        None => Err(bad(handle)),
    })
}

pub fn insert_directory(inode: InodeId, who: Credentials) -> FileHandle {
    insert(Open::Directory(Some(Box::new(Directory::new(inode, who)))))
}

pub fn remove_directory(handle: FileHandle) {
    TABLE.with_borrow_mut(|table| table.open.remove(&handle.0));
}

/// Runs `work` on an open directory.
pub async fn with_directory<T>(
    handle: FileHandle,
    work: impl AsyncFnOnce(&mut Directory) -> Result<T>,
) -> Result<T> {
    let mut directory = TABLE.with_borrow_mut(|table| match table.open.get_mut(&handle.0) {
        Some(Open::Directory(directory)) => directory.take().ok_or_else(|| bad(handle)),
        _ => Err(bad(handle)),
    })?;
    let result = work(&mut directory).await;
    TABLE.with_borrow_mut(|table| {
        if let Some(Open::Directory(slot)) = table.open.get_mut(&handle.0) {
            *slot = Some(directory);
        }
    });
    result
}
