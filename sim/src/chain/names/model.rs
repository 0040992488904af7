//! What must come of a client's operations, and what must be there in the end.

use super::{Around, Common, lock_name};
use crate::tasks::Owner;
use corefs_kv::mem::Mem;
use corefs_meta::Namespace;
use corefs_wire::ErrorCode;
use corefs_wire::control::meta::{AttrT, GetAttrT, ReadDirT};
use std::collections::BTreeMap;

/// Something that a client does in its directory. Names are one byte long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deed {
    Create(u8),
    Unlink(u8),
    Rename(u8, u8),
    Link(u8, u8),
    Truncate(u8, u64),
    Look(u8),
    /// Opens for writing; a second request closes, having written so far.
    Write(u8, u64),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct File {
    /// 0: nobody has been told yet.
    inode: u64,
    links: u32,
    size: u64,
}

/// A directory, as it should be.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Model {
    names: BTreeMap<u8, usize>,
    files: Vec<File>,
}

impl Model {
    pub fn inode(&self, name: u8) -> Option<u64> {
        Some(self.files[*self.names.get(&name)?].inode)
    }

    /// Carries a deed out. `told`: the attributes in the answer, if it had some.
    pub fn apply(&mut self, deed: Deed, told: Option<&AttrT>) -> Result<(), ErrorCode> {
        match deed {
            Deed::Create(name) => {
                if self.names.contains_key(&name) {
                    return Err(ErrorCode::Exists);
                }
                self.files.push(File { inode: told.map_or(0, |attr| attr.inode), links: 1, size: 0 });
                self.names.insert(name, self.files.len() - 1);
            }
            Deed::Unlink(name) => {
                let file = self.names.remove(&name).ok_or(ErrorCode::NotFound)?;
                self.files[file].links -= 1;
            }
            Deed::Rename(from, to) => {
                let file = *self.names.get(&from).ok_or(ErrorCode::NotFound)?;
                if self.names.get(&to) == Some(&file) {
                    // Two names of one file: both stay.
                    return Ok(());
                }
                self.names.remove(&from);
                if let Some(replaced) = self.names.insert(to, file) {
                    self.files[replaced].links -= 1;
                }
            }
            Deed::Link(from, to) => {
                let file = *self.names.get(&from).ok_or(ErrorCode::NotFound)?;
                if self.names.contains_key(&to) {
                    return Err(ErrorCode::Exists);
                }
                self.names.insert(to, file);
                self.files[file].links += 1;
            }
            Deed::Truncate(name, size) => self.file(name)?.size = size,
            Deed::Write(name, end) => {
                let file = self.file(name)?;
                file.size = file.size.max(end);
            }
            Deed::Look(name) => {
                let file = self.file(name)?.clone();
                if let Some(attr) = told
                    && (attr.inode, attr.nlink, attr.size) != (file.inode, file.links, file.size)
                {
                    return Err(ErrorCode::Corrupt);
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, name: u8) -> Result<&mut File, ErrorCode> {
        let file = *self.names.get(&name).ok_or(ErrorCode::NotFound)?;
        Ok(&mut self.files[file])
    }

    /// Whether a listing of names and attributes is this.
    fn is(&self, found: &BTreeMap<Vec<u8>, (u64, u32, u64)>) -> bool {
        found.len() == self.names.len()
            && self.names.iter().all(|(name, file)| {
                let File { inode, links, size } = self.files[*file];
                let fits = |(is, nlink, length): &(u64, u32, u64)| {
                    (*is == inode || inode == 0) && (*nlink, *length) == (links, size)
                };
                found.get([*name].as_slice()).is_some_and(fits)
            })
    }
}

/// What one client process did.
#[derive(Clone, Default)]
pub struct Life {
    pub owner: Owner,
    /// Its number. 0: it never got one.
    pub client: u64,
    /// Its directory. 0: it was never told of one.
    pub directory: u64,
    pub model: Model,
    /// What it asked for, and has had no answer to.
    pub pending: Option<Deed>,
    /// The name in the arena that it asked for or has.
    pub wants: Option<usize>,
    /// It is no more, or has ended all it was at.
    pub over: bool,
}

impl Life {
    pub fn is_over(&self) -> bool {
        self.over
    }

    pub async fn check(&self, fs: &Namespace<Mem, Around>) -> Result<(), String> {
        if self.directory == 0 {
            return Ok(());
        }
        let found = list(fs, self.directory).await?;
        let mut possible = vec![self.model.clone()];
        if let Some(deed) = self.pending {
            let mut after = self.model.clone();
            if after.apply(deed, None).is_ok() {
                possible.push(after);
            }
        }
        match possible.iter().any(|model| model.is(&found)) {
            true => Ok(()),
            false => Err(format!(
                "names: client {} has {found:?}, which should be one of {possible:?} (pending: {:?})",
                self.client, self.pending
            )),
        }
    }
}

/// Names in a directory, each with inode, links and size.
async fn list(
    fs: &Namespace<Mem, Around>,
    directory: u64,
) -> Result<BTreeMap<Vec<u8>, (u64, u32, u64)>, String> {
    let told = |error: corefs_wire::Error| format!("names: listing {directory}: {error}");
    let mut request = ReadDirT::default();
    (request.inode, request.limit) = (directory, 1000);
    let entries = fs.read_dir(&request).await.map_err(told)?.entries;
    let mut attributes = GetAttrT::default();
    attributes.inodes = entries.iter().map(|entry| entry.inode).collect();
    if entries.is_empty() {
        return Ok(BTreeMap::new());
    }
    let results = fs.get_attr(&attributes).await.map_err(told)?.results;
    let attr =
        |at: usize| results[at].attr.as_ref().map_or((0, 0, 0), |attr| (attr.inode, attr.nlink, attr.size));
    Ok(entries.into_iter().enumerate().map(|(at, entry)| (entry.name, attr(at))).collect())
}

/// Names that somebody has are there, and no others but those of whoever died asking for one.
pub async fn check_arena(common: &Common, fs: &Namespace<Mem, Around>) -> Result<(), String> {
    let found = list(fs, common.arena.get()).await?;
    let lives = common.lives.borrow();
    for (lock, holder) in common.holders.borrow().iter().enumerate() {
        let there = found.contains_key([lock_name(lock)].as_slice());
        let open = lives.iter().any(|life| life.borrow().wants == Some(lock));
        if !open && there != holder.is_some() {
            return Err(format!("names: {lock} in the arena is held by {holder:?}, there: {there}"));
        }
    }
    Ok(())
}
