//! What must come of a client's operations, and what must be there in the end.

use super::{Around, Common, lock_name};
use crate::tasks::Owner;
use corefs_kv::mem::Mem;
use corefs_meta::Namespace;
use corefs_wire::ErrorCode;
use corefs_wire::control::meta::{AttrT, GetAttrT, InlineT, OpenT, ReadDirT};
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
    /// Opens for writing; a second request closes, having written so far, or with the bytes if the file keeps them with its inode.
    Write(u8, u64),
    /// Has the bytes moved to chunks.
    MoveOut(u8),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct File {
    /// 0: nobody has been told yet.
    inode: u64,
    links: u32,
    size: u64,
    /// As long as they are kept with the inode: all of them.
    kept: Option<Vec<u8>>,
}

/// Whether new files of this name keep their bytes.
pub fn keeps(name: u8) -> bool {
    name % 2 == 1
}

/// Where a write up to `end` begins in a file that keeps its bytes, and what it writes.
pub fn piece(end: u64) -> (u64, Vec<u8>) {
    let start = end / 3;
    (start, vec![end as u8 | 1; (end - start) as usize])
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
                let (inode, kept) = (told.map_or(0, |attr| attr.inode), keeps(name).then(Vec::new));
                self.files.push(File { inode, links: 1, size: 0, kept });
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
            Deed::Truncate(name, size) => {
                let file = self.file(name)?;
                file.size = size;
                if let Some(kept) = &mut file.kept {
                    kept.resize(size as usize, 0);
                }
            }
            Deed::MoveOut(name) => self.file(name)?.kept = None,
            Deed::Write(name, end) => {
                let file = self.file(name)?;
                file.size = file.size.max(end);
                if let Some(kept) = &mut file.kept {
                    let (start, bytes) = piece(end);
                    kept.resize(file.size as usize, 0);
                    kept[start as usize..end as usize].copy_from_slice(&bytes);
                }
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

    pub fn kept_by(&self, inode: u64) -> Option<&[u8]> {
        self.files.iter().find(|file| file.inode == inode)?.kept.as_deref()
    }

    /// The bytes that a file keeps with its inode.
    pub fn kept(&self, name: u8) -> Option<&[u8]> {
        self.files[*self.names.get(&name)?].kept.as_deref()
    }

    fn file(&mut self, name: u8) -> Result<&mut File, ErrorCode> {
        let file = *self.names.get(&name).ok_or(ErrorCode::NotFound)?;
        Ok(&mut self.files[file])
    }

    /// Whether a listing of names and attributes is this.
    fn is(&self, found: &Listing) -> bool {
        found.len() == self.names.len()
            && self.names.iter().all(|(name, file)| {
                let File { inode, links, size, kept } = &self.files[*file];
                let fits = |(is, nlink, length, bytes): &Found| {
                    (is == inode || *inode == 0) && (nlink, length, bytes) == (links, size, kept)
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

/// Inode, links, size, and the bytes that are kept with the inode.
type Found = (u64, u32, u64, Option<Vec<u8>>);
type Listing = BTreeMap<Vec<u8>, Found>;

/// Names in a directory.
async fn list(fs: &Namespace<Mem, Around>, directory: u64) -> Result<Listing, String> {
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
    let mut all = Listing::new();
    for (entry, result) in entries.into_iter().zip(results) {
        let attr = result.attr.map(|attr| *attr).unwrap_or_default();
        let mut open = OpenT::default();
        (open.inode, open.bytes) = (attr.inode, true);
        let bytes = match attr.inode {
            0 => None,
            _ => fs.open(&open).await.map_err(told)?.inline.map(|inline| padded(&inline, attr.size)),
        };
        all.insert(entry.name, (attr.inode, attr.nlink, attr.size, bytes));
    }
    Ok(all)
}

/// All bytes of a file that is so long, of which a message has the first ones.
pub fn padded(inline: &InlineT, size: u64) -> Vec<u8> {
    let mut bytes = inline.bytes.clone();
    bytes.resize(size as usize, 0);
    bytes
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
