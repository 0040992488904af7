//! A file system as simple as can be, to hold the real one against: POSIX rules over maps, one client, privileged.

use corefs_wire::ErrorCode;
use corefs_wire::control::meta::Kind;
use std::collections::BTreeMap;

type Outcome<T = ()> = Result<T, ErrorCode>;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub nlink: u32,
    pub size: u64,
    pub target: Vec<u8>,
    pub entries: BTreeMap<Vec<u8>, usize>,
    pub parent: usize,
}

/// Nodes are named by numbers of the model's own; 0 is the root.
#[derive(Clone, Debug)]
pub struct Model {
    pub nodes: BTreeMap<usize, Node>,
    next: usize,
}

impl Default for Model {
    fn default() -> Self {
        let root = Node {
            kind: Kind::Directory,
            mode: 0o755,
            nlink: 1,
            size: 0,
            target: Vec::new(),
            entries: BTreeMap::new(),
            parent: 0,
        };
        Self { nodes: [(0, root)].into(), next: 1 }
    }
}

impl Model {
    fn directory(&self, id: usize) -> Outcome<&Node> {
        let node = self.nodes.get(&id).ok_or(ErrorCode::NoSuchInode)?;
        if node.kind == Kind::Directory { Ok(node) } else { Err(ErrorCode::NotDirectory) }
    }

    pub fn lookup(&self, parent: usize, name: &[u8]) -> Outcome<usize> {
        self.directory(parent)?.entries.get(name).copied().ok_or(ErrorCode::NotFound)
    }

    /// Links as stat shows them.
    pub fn links(&self, id: usize) -> u32 {
        let node = &self.nodes[&id];
        let directories = node.entries.values().filter(|child| self.is_directory(**child)).count();
        if node.kind == Kind::Directory { 2 + directories as u32 } else { node.nlink }
    }

    pub fn is_directory(&self, id: usize) -> bool {
        self.nodes[&id].kind == Kind::Directory
    }

    pub fn create(
        &mut self,
        parent: usize,
        name: &[u8],
        kind: Kind,
        mode: u32,
        target: &[u8],
    ) -> Outcome<usize> {
        if self.directory(parent)?.entries.contains_key(name) {
            return Err(ErrorCode::Exists);
        }
        let id = self.next;
        self.next += 1;
        let inherited = self.nodes[&parent].mode & 0o2000;
        let mode = match kind {
            Kind::Symlink => 0o777,
            Kind::Directory => mode | inherited,
            _ => mode,
        };
        let target = target.to_vec();
        self.nodes
            .insert(id, Node { kind, mode, nlink: 1, size: 0, target, entries: BTreeMap::new(), parent });
        self.put(parent, name, id);
        Ok(id)
    }

    fn put(&mut self, parent: usize, name: &[u8], id: usize) {
        self.nodes.get_mut(&parent).unwrap().entries.insert(name.to_vec(), id);
        if self.is_directory(id) {
            self.nodes.get_mut(&id).unwrap().parent = parent;
        }
    }

    fn take(&mut self, parent: usize, name: &[u8]) {
        self.nodes.get_mut(&parent).unwrap().entries.remove(name);
    }

    fn drop_name(&mut self, id: usize) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.nlink -= 1;
        if node.nlink == 0 && node.kind != Kind::File {
            self.nodes.remove(&id);
        }
    }

    pub fn unlink(&mut self, parent: usize, name: &[u8]) -> Outcome {
        let id = self.lookup(parent, name)?;
        if self.is_directory(id) {
            return Err(ErrorCode::IsDirectory);
        }
        self.take(parent, name);
        self.drop_name(id);
        Ok(())
    }

    pub fn rmdir(&mut self, parent: usize, name: &[u8]) -> Outcome {
        let id = self.lookup(parent, name)?;
        if !self.directory(id)?.entries.is_empty() {
            return Err(ErrorCode::NotEmpty);
        }
        self.take(parent, name);
        self.nodes.remove(&id);
        Ok(())
    }

    pub fn link(&mut self, id: usize, parent: usize, name: &[u8]) -> Outcome {
        let exists = self.directory(parent)?.entries.contains_key(name);
        let node = self.nodes.get(&id).ok_or(ErrorCode::NoSuchInode)?;
        match (node.kind, exists, node.nlink) {
            (Kind::Directory, ..) => return Err(ErrorCode::NotPermitted),
            (_, true, _) => return Err(ErrorCode::Exists),
            (_, _, 0) => return Err(ErrorCode::NoSuchInode),
            _ => {}
        }
        self.nodes.get_mut(&id).unwrap().nlink += 1;
        self.put(parent, name, id);
        Ok(())
    }

    fn is_under(&self, mut id: usize, ancestor: usize) -> bool {
        loop {
            if id == ancestor {
                return true;
            }
            if id == 0 {
                return false;
            }
            id = self.nodes[&id].parent;
        }
    }

    pub fn rename(&mut self, from: (usize, &[u8]), to: (usize, &[u8]), flags: u32) -> Outcome {
        self.directory(from.0)?;
        self.directory(to.0)?;
        let old = self.lookup(from.0, from.1)?;
        let new = self.lookup(to.0, to.1).ok();
        match (flags, new) {
            (1, Some(_)) => return Err(ErrorCode::Exists),
            (2, None) => return Err(ErrorCode::NotFound),
            _ => {}
        }
        if new == Some(old) {
            return Ok(());
        }
        if self.is_directory(old) && from.0 != to.0 && self.is_under(to.0, old) {
            return Err(ErrorCode::WouldLoop);
        }
        if let (2, Some(new)) = (flags, new) {
            if self.is_directory(new) && from.0 != to.0 && self.is_under(from.0, new) {
                return Err(ErrorCode::WouldLoop);
            }
            self.put(to.0, to.1, old);
            self.put(from.0, from.1, new);
            return Ok(());
        }
        if let Some(new) = new {
            match (self.is_directory(old), self.is_directory(new)) {
                (true, false) => return Err(ErrorCode::NotDirectory),
                (false, true) => return Err(ErrorCode::IsDirectory),
                (true, true) if !self.nodes[&new].entries.is_empty() => return Err(ErrorCode::NotEmpty),
                (true, true) => drop(self.nodes.remove(&new)),
                (false, false) => self.drop_name(new),
            }
        }
        self.take(from.0, from.1);
        self.put(to.0, to.1, old);
        Ok(())
    }
}
