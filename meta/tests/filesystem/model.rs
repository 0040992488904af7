//! Random operations on the namespace and on a model of it must agree, in every result and in what is there.

use crate::support::client::{Client, ROOT, root};
use crate::support::model::Model;
use crate::support::{assert_clean, over};
use corefs_kv::Mem;
use corefs_kv::mem::Faults;
use corefs_kv::prng::Prng;
use corefs_meta::gc::{GcCursor, GcLimits};
use corefs_wire::ErrorCode;
use corefs_wire::control::meta::Kind;
use futures_lite::future::block_on;
use std::collections::BTreeMap;

/// A model, and which inode each of its nodes is.
struct Pair {
    model: Model,
    inodes: BTreeMap<usize, u64>,
    random: Prng,
}

impl Pair {
    /// Any node that ever was: mostly there, sometimes gone.
    fn node(&mut self) -> usize {
        let at = self.random.below(self.inodes.len() as u64) as usize;
        *self.inodes.keys().nth(at).unwrap()
    }

    /// Mostly a directory that is there.
    fn directory(&mut self) -> usize {
        let directories: Vec<usize> =
            self.model.nodes.keys().copied().filter(|id| self.model.is_directory(*id)).collect();
        match self.random.below(20) {
            0 => self.node(),
            _ => directories[self.random.below(directories.len() as u64) as usize],
        }
    }

    /// Few names, so that they meet.
    fn name(&mut self) -> Vec<u8> {
        vec![b'a' + self.random.below(6) as u8]
    }

    async fn step(&mut self, client: &Client) {
        let (parent, name) = (self.directory(), self.name());
        let inode = self.inodes[&parent];
        let choice = self.random.below(100);
        let (expected, found): (Result<(), ErrorCode>, corefs_wire::Result<()>) = match choice {
            0..30 => return self.create(client, parent, &name).await,
            30..45 => (self.model.unlink(parent, &name), client.unlink(inode, &name).await),
            45..55 => (self.model.rmdir(parent, &name), client.rmdir(inode, &name).await),
            55..80 => {
                let (to, new_name) = (self.directory(), self.name());
                let flags = [0, 0, 1, 2][self.random.below(4) as usize];
                let expected = self.model.rename((parent, &name), (to, &new_name), flags);
                let to = (self.inodes[&to], new_name.as_slice());
                (expected, client.rename((inode, &name), to, flags).await)
            }
            80..90 => {
                let node = self.node();
                let expected = self.model.link(node, parent, &name);
                (expected, client.link(self.inodes[&node], inode, &name).await.map(drop))
            }
            90..95 => return self.set(client).await,
            _ => {
                let expected = self.model.lookup(parent, &name);
                let found = client.lookup(inode, &name).await;
                assert_eq!(
                    found.as_ref().map(|attr| attr.inode).map_err(|error| error.code),
                    expected.map(|node| self.inodes[&node])
                );
                return;
            }
        };
        assert_eq!(found.map_err(|error| error.code), expected, "choice {choice} {name:?} in {inode}");
    }

    async fn create(&mut self, client: &Client, parent: usize, name: &[u8]) {
        let kind = [Kind::File, Kind::File, Kind::Directory, Kind::Directory, Kind::Symlink, Kind::Fifo]
            [self.random.below(6) as usize];
        let mode = self.random.below(0o1000) as u32;
        let target: &[u8] = if kind == Kind::Symlink { b"somewhere" } else { b"" };
        let expected = self.model.create(parent, name, kind, mode, target);
        let mut request = client.create_request(self.inodes[&parent], name, kind, mode);
        request.symlink_target = target.to_vec();
        match (expected, client.send_create(request).await) {
            (Ok(node), Ok(made)) => drop(self.inodes.insert(node, made.attr.inode)),
            (expected, found) => {
                let found = found.map(drop).map_err(|error| error.code);
                assert_eq!(found, expected.map(drop), "creating {name:?}");
            }
        }
    }

    async fn set(&mut self, client: &Client) {
        let node = self.node();
        let inode = self.inodes[&node];
        let Some(stored) = self.model.nodes.get_mut(&node) else { return };
        if stored.kind == Kind::File {
            stored.size = self.random.below(1 << 20);
            client.truncate(inode, stored.size).await.unwrap();
        } else {
            stored.mode = self.random.below(0o10000) as u32;
            client.chmod(inode, stored.mode).await.unwrap();
        }
    }

    /// Everything that the model has is there, and nothing else.
    async fn compare(&self, client: &Client) {
        for (node, stored) in &self.model.nodes {
            let inode = self.inodes[node];
            let attr = client.stat(inode).await;
            let attr = attr.unwrap();
            assert_eq!(
                (attr.kind, attr.mode, attr.nlink),
                (stored.kind, stored.mode, self.model.links(*node))
            );
            match stored.kind {
                Kind::Directory => {
                    assert_eq!(attr.parent, self.inodes[&stored.parent]);
                    let listed = client.list_plus(inode, b"", 0, false).await.unwrap();
                    let listed = listed.entries.into_iter().map(|entry| (entry.name, entry.inode));
                    let expected =
                        stored.entries.iter().map(|(name, node)| (name.clone(), self.inodes[node]));
                    assert!(listed.eq(expected), "directory {inode}");
                }
                Kind::Symlink => assert_eq!(client.read_link(inode).await.unwrap(), stored.target),
                Kind::File => assert_eq!(attr.size, stored.size),
                _ => {}
            }
        }
        for (node, inode) in self.inodes.iter().filter(|(node, _)| !self.model.nodes.contains_key(node)) {
            let gone = client.stat(*inode).await.unwrap_err();
            assert_eq!(gone.code, ErrorCode::NoSuchInode, "node {node}");
        }
    }
}

fn agree(seed: u64, faults: Faults, steps: usize) {
    block_on(async {
        let (fs, _) = over(Mem::with_faults(seed, Faults::default()), seed).await;
        fs.kv().set_faults(faults);
        let client = root(&fs);
        client.low_water.set(true);
        let inodes = [(0, ROOT)].into();
        let mut pair = Pair { model: Model::default(), inodes, random: Prng::new(seed) };
        let mut cursor = GcCursor::default();
        for step in 0..steps {
            pair.step(&client).await;
            if step % 100 == 99 {
                fs.kv().set_faults(Faults::default());
                fs.kv().settle();
                pair.compare(&client).await;
                assert_clean(&fs).await;
                fs.collect_garbage(&mut cursor, GcLimits::default()).await.unwrap();
                pair.model.nodes.retain(|_, node| node.nlink > 0);
                fs.kv().set_faults(faults);
            }
        }
    });
}

#[test]
fn with_a_store_in_which_nothing_goes_wrong() {
    (0..40).for_each(|seed| agree(seed, Faults::default(), 600));
}

#[test]
fn with_a_store_in_which_everything_goes_wrong() {
    (0..40).for_each(|seed| agree(seed, Faults::STORM, 400));
}
