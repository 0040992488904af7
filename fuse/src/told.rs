//! What the kernel was told to believe for long, because this mount hears of what others change.
//!
//! The table lives on the thread of the mount's one client shard. What it tells the kernel goes through a thread of its own, since the kernel may
//! wait for our answers before it forgets a name.

use corefs_client::{Client, News, Watch};
use corefs_wire::{Error, InodeId, Result};
use fuser::{INodeNo, Notifier};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// For how long the kernel believes what it will be told when it changes. Not for ever: a metadata server that the managers have forgotten, and
/// that still serves somebody who doesn't know, is asked by nobody here.
pub const LONG: Duration = Duration::from_secs(60);
/// Names and inodes remembered: about 150 bytes each. Beyond them the kernel is told to believe for a second, as without this.
const TOLD_MAX: usize = 1 << 19;
/// When the table is full what has run out is looked for so often at most.
const SWEEP: Duration = Duration::from_secs(5);
/// An inode that the kernel didn't know when it should have forgotten it may be one of which an answer had just been given: it is told again.
const AGAIN: Duration = Duration::from_secs(1);

struct Told {
    watch: Watch,
    forget: Sender<News>,
    /// What it believes, and since when.
    believed: HashMap<News, Instant>,
    swept: Instant,
}

thread_local! {
    static TOLD: RefCell<Option<Told>> = RefCell::default();
}

/// On the client's thread, before the first request is taken.
pub fn start(client: &Client, notifier: Notifier) -> Result<()> {
    let (forget, forgotten) = mpsc::channel();
    let watch = client.watch(hear);
    TOLD.set(Some(Told { watch, forget, believed: HashMap::new(), swept: Instant::now() }));
    let work = move || make_forget(&notifier, &forgotten);
    std::thread::Builder::new().name("corefs-doubt".into()).spawn(work).map(drop).map_err(Error::from)
}

/// How long the kernel may believe anything, if it believes some things for `believed`.
pub fn longest(believed: Duration) -> Duration {
    if TOLD.with_borrow(Option::is_some) { believed.max(LONG) } else { believed }
}

/// To be taken before a server is asked for what the kernel is then told.
#[derive(Clone, Copy)]
pub struct Asked(u64);

pub fn asking() -> Asked {
    Asked(TOLD.with_borrow(|told| told.as_ref().map_or(0, |told| told.watch.count())))
}

impl Asked {
    /// For how long the kernel may believe an inode's attributes: `believed`, or for long, until it is told.
    pub fn attributes(self, inode: InodeId, believed: Duration) -> Duration {
        self.long([Some(News::Inode(inode)), None], believed)
    }

    /// The same of what a name leads to (nothing: `None`), and its attributes.
    pub fn name(self, parent: InodeId, name: &[u8], inode: Option<InodeId>, believed: Duration) -> Duration {
        self.long([Some(News::Name(parent, name.to_vec())), inode.map(News::Inode)], believed)
    }

    fn long(self, about: [Option<News>; 2], believed: Duration) -> Duration {
        TOLD.with_borrow_mut(|told| {
            let Some(told) = told else { return believed };
            let is_about = |news: &News| about.iter().flatten().any(|about| about == news);
            if !told.watch.stands(self.0, is_about) || !told.has_room() {
                return believed;
            }
            let now = Instant::now();
            for about in about.into_iter().flatten() {
                told.believed.insert(about, now);
            }
            LONG
        })
    }
}

impl Told {
    fn has_room(&mut self) -> bool {
        if self.believed.len() + 2 <= TOLD_MAX {
            return true;
        }
        if self.swept.elapsed() >= SWEEP {
            self.believed.retain(|_, since| since.elapsed() < LONG);
            self.swept = Instant::now();
        }
        self.believed.len() + 2 <= TOLD_MAX
    }

    fn doubt(&mut self, news: &News) {
        // The thread ends with this sender, and not before it.
        let tell = |news| _ = self.forget.send(news);
        match news {
            News::Everything => {
                let live = self.believed.drain().filter(|(_, since)| since.elapsed() < LONG);
                live.for_each(|(news, _)| tell(news));
            }
            news => {
                if let Some((news, _)) = self.believed.remove_entry(news) {
                    tell(news);
                }
            }
        }
    }
}

fn hear(news: &News) {
    TOLD.with_borrow_mut(|told| {
        if let Some(told) = told {
            told.doubt(news);
        }
    });
}

/// Has the kernel forget what is sent, until nobody can send any more.
fn make_forget(notifier: &Notifier, forgotten: &Receiver<News>) {
    let mut again: VecDeque<(Instant, InodeId)> = VecDeque::new();
    loop {
        let next = match again.front() {
            Some((at, _)) => forgotten.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => forgotten.recv().map_err(RecvTimeoutError::from),
        };
        match next {
            Ok(News::Inode(inode)) => {
                if is_unknown(&attributes(notifier, inode)) {
                    again.push_back((Instant::now() + AGAIN, inode));
                }
            }
            Ok(News::Name(parent, name)) => {
                let told = notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(&name));
                report(told, parent);
            }
            Ok(News::Everything) => {}
            Err(RecvTimeoutError::Timeout) => {
                if let Some((_, inode)) = again.pop_front() {
                    report(attributes(notifier, inode), inode);
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// -1: the attributes alone (`fuse_notify_inval_inode_out` of linux/fuse.h).
fn attributes(notifier: &Notifier, inode: InodeId) -> io::Result<()> {
    notifier.inval_inode(INodeNo(inode.0), -1, 0)
}

fn is_unknown(told: &io::Result<()>) -> bool {
    told.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// What the kernel doesn't know it has forgotten already.
fn report(told: io::Result<()>, inode: InodeId) {
    if let Err(error) = told.as_ref()
        && !is_unknown(&told)
    {
        tracing::debug!(%error, %inode, "the kernel was not told of a change");
    }
}
