//! Names by the native client, which keeps the inode numbers of directories and so asks for names directly; lanes are tasks
//! on the client's cores.
//!
//! A create makes a file and no session: one commit; with bytes it is two, of which the second has these and the file's end. An open looks the name up and asks
//! for the file, and for a small one's bytes, if they are to be read.

use super::servers::{self, Usage};
use super::{Names, Phase, Plan, drive, note_servers};
use crate::cpu::{CpuTime, Whose};
use crate::driver::Live;
use crate::histogram::Latencies;
use crate::native::Native;
use crate::report::Tally;
use corefs_client::{Client, CreateOptions, Credentials, Kind, NewInode, OpenOptions};
use corefs_wire::{Error, ErrorCode, InodeId, Result};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Instant;

/// Entries of one page of a listing.
const PAGE: u32 = 4096;

/// A tree of a run in a directory of its own.
pub struct Tree {
    shared: Arc<Shared>,
    root: Vec<u8>,
}

struct Shared {
    plan: Plan,
    root: AtomicU64,
    /// Each directory's inode, once it is made.
    directories: Vec<AtomicU64>,
}

/// One core's hands.
struct Hands {
    client: Client,
    who: Credentials,
    shared: Arc<Shared>,
}

impl Tree {
    /// Makes the directory of the run in `under`, an absolute path in corefs.
    pub fn new(native: &Native, under: &Path, plan: Plan) -> Result<Self> {
        use std::os::unix::ffi::OsStrExt;
        let root =
            under.join(format!("corefs-perf-native-{}", std::process::id())).as_os_str().as_bytes().to_vec();
        let path = root.clone();
        let make = move |client: Client| async move {
            client.fs(Credentials::of_process()).mkdir_all(&path, 0o755).await.map(|attr| attr.inode.0)
        };
        let made = native.pool().block_on(0, make)?;
        let directories = (0..plan.directories).map(|_| AtomicU64::new(0)).collect();
        let shared = Shared { plan, root: AtomicU64::new(made), directories };
        Ok(Self { shared: Arc::new(shared), root })
    }

    /// One phase on all lanes at once.
    pub fn run(&self, native: &Native, phase: Phase, live: &Arc<Live>) -> Result<Tally> {
        let cores = native.pool().shards() as u32;
        let (before, servers) = (CpuTime::own(Whose::Process), usage(native));
        let started = Instant::now();
        let (send, receive) = mpsc::channel();
        for core in 0..cores {
            let (shared, live, send) = (Arc::clone(&self.shared), Arc::clone(live), send.clone());
            native.pool().run(core as usize, move |client| async move {
                let who = Credentials::of_process();
                let hands = Rc::new(Hands { client, who, shared });
                let mine = (core..hands.shared.plan.lanes).step_by(cores as usize);
                let lanes: Vec<_> = mine
                    .map(|lane| {
                        let (hands, live) = (Rc::clone(&hands), Arc::clone(&live));
                        corefs_net::executor::spawn(async move {
                            drive(&*hands, &hands.shared.plan, lane, phase, &live).await
                        })
                    })
                    .collect();
                for lane in lanes {
                    // Whoever waits may have given up.
                    let _gone = send.send(lane.await);
                }
            })?;
        }
        drop(send);
        let mut all = Tally { latencies: Latencies::new(), ..Tally::default() };
        receive.into_iter().for_each(|tally| all.join(tally));
        all.elapsed = started.elapsed();
        all.client = Some(CpuTime::own(Whose::Process).since(before));
        note_servers(&mut all, servers.as_ref(), usage(native).as_ref());
        Ok(all)
    }

    /// Removes what is left.
    pub fn remove(self, native: &Native) -> Result<()> {
        let path = self.root;
        let remove =
            move |client: Client| async move { client.fs(Credentials::of_process()).remove_all(&path).await };
        native.pool().block_on(0, remove)
    }
}

/// What the servers have used so far; `None` when one of them doesn't say.
pub fn usage(native: &Native) -> Option<Usage> {
    native.pool().block_on(0, |client| async move { servers::ask(&client).await }).ok()
}

impl Hands {
    fn directory(&self, directory: u64) -> InodeId {
        InodeId(self.shared.directories[directory as usize].load(Ordering::Acquire))
    }

    fn of(&self, file: u64) -> InodeId {
        self.directory(self.shared.plan.directory_of(file))
    }
}

impl Names for Hands {
    async fn mkdir(&self, directory: u64, each: &mut dyn FnMut(Instant)) -> Result<()> {
        let mut at = InodeId(self.shared.root.load(Ordering::Acquire));
        for name in self.shared.plan.path_of(directory) {
            let from = Instant::now();
            let node = NewInode::new(Kind::Directory, 0o755);
            at = self.client.meta().create(&self.who, at, name.as_bytes(), &node).await?.attr.inode;
            each(from);
        }
        self.shared.directories[directory as usize].store(at.0, Ordering::Release);
        Ok(())
    }

    async fn rmdir(&self, directory: u64, each: &mut dyn FnMut(Instant)) -> Result<()> {
        let mut above = vec![InodeId(self.shared.root.load(Ordering::Acquire))];
        let path = self.shared.plan.path_of(directory);
        for name in &path[..path.len() - 1] {
            let parent = above.last().copied().ok_or(ErrorCode::Internal)?;
            above.push(self.client.lookup(&self.who, parent, name.as_bytes()).await?.inode);
        }
        for (parent, name) in above.into_iter().zip(&path).rev() {
            let from = Instant::now();
            self.client.meta().rmdir(&self.who, parent, name.as_bytes(), false).await?;
            each(from);
        }
        Ok(())
    }

    async fn readdir(&self, directory: u64) -> Result<u64> {
        let (mut entries, mut after) = (0, Vec::new());
        loop {
            let directory = self.directory(directory);
            let page = self.client.meta().read_dir(&self.who, directory, &after, PAGE, false).await?;
            entries += page.entries.len() as u64;
            match page.entries.into_iter().last() {
                Some(last) if page.more => after = last.name,
                _ => return Ok(entries),
            }
        }
    }

    async fn create(&self, file: u64) -> Result<()> {
        let name = self.shared.plan.name_of(file);
        if self.shared.plan.bytes > 0 {
            let options = CreateOptions { exclusive: true, mode: 0o644, ..CreateOptions::default() };
            let (made, _) = self.client.create(&self.who, self.of(file), name.as_bytes(), options).await?;
            made.write_at(0, &self.shared.plan.bytes_of(file)).await?;
            return made.close().await;
        }
        let node = NewInode::new(Kind::File, 0o644);
        let made = self.client.meta().create(&self.who, self.of(file), name.as_bytes(), &node).await?;
        if made.created { Ok(()) } else { Err(Error::new(ErrorCode::Exists, name)) }
    }

    async fn stat(&self, file: u64) -> Result<()> {
        let name = self.shared.plan.name_of(file);
        self.client.lookup(&self.who, self.of(file), name.as_bytes()).await.map(drop)
    }

    async fn open(&self, file: u64) -> Result<()> {
        let name = self.shared.plan.name_of(file);
        let attr = self.client.lookup(&self.who, self.of(file), name.as_bytes()).await?;
        self.client.open(&self.who, attr.inode, Default::default()).await?.close().await
    }

    async fn read(&self, file: u64) -> Result<()> {
        let plan = &self.shared.plan;
        let attr = self.client.lookup(&self.who, self.of(file), plan.name_of(file).as_bytes()).await?;
        let ahead = OpenOptions { ahead: true, ..OpenOptions::default() };
        let opened = self.client.open(&self.who, attr.inode, ahead).await?;
        let found = opened.read_at(0, plan.bytes as usize + 1).await;
        plan.check_bytes(file, &found?)?;
        opened.close().await
    }

    async fn rename(&self, file: u64) -> Result<()> {
        let (directory, plan) = (self.of(file), &self.shared.plan);
        let (from, to) = (plan.name_of(file), plan.new_name_of(file));
        let (from, to) = ((directory, from.as_bytes()), (directory, to.as_bytes()));
        self.client.rename(&self.who, from, to, 0).await
    }

    async fn unlink(&self, file: u64) -> Result<()> {
        let name = self.shared.plan.new_name_of(file);
        self.client.unlink(&self.who, self.of(file), name.as_bytes()).await
    }
}
