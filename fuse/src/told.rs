//! What the kernel was told to believe for long, because this mount hears of what others change.
//!
//! The table lives on the thread of the mount's one client shard. What it tells the kernel goes through threads of their own, since the kernel may
//! wait for our answers before it forgets a name.

use crate::kernel::Kernel;
use crate::marks;
use corefs_client::{Client, Moment, News, Watch};
use corefs_wire::{Error, InodeId, Result};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// For how long the kernel believes what it will be told when it changes. Not for ever: a metadata server that the managers have forgotten, and
/// that still serves somebody who doesn't know, is asked by nobody here.
pub const LONG: Duration = Duration::from_secs(60);
/// What was believed for so long isn't any more, whenever the kernel began to.
const OVER: Duration = Duration::from_secs(70);
/// Names and inodes remembered: about 150 bytes each. Beyond them the kernel is told to believe for a second, as without this.
const TOLD_MAX: usize = 1 << 19;
/// When the table is full what has run out is looked for so often at most.
const SWEEP: Duration = Duration::from_secs(5);
/// An answer may have been given just before the kernel was told to doubt, and reach whoever asked after that: it is told again.
const AGAIN: Duration = Duration::from_secs(1);
/// Threads that have names doubted, each those of other directories: the kernel lets none wait for a directory that is in use and another one.
const THREADS: usize = 4;

struct Told {
    watch: Watch,
    /// Names can be doubted without harm to what is below them.
    names: bool,
    inodes: Sender<News>,
    directories: Vec<Sender<News>>,
    believed: Believed,
}

/// What the kernel believes, and since when.
struct Believed {
    since: HashMap<News, Instant>,
    most: usize,
    swept: Instant,
}

thread_local! {
    static TOLD: RefCell<Option<Told>> = RefCell::default();
}

/// On the client's thread, before the first request is taken. `names`: the kernel can doubt a name and keep it (`FUSE_HAS_EXPIRE_ONLY`).
pub fn start(client: &Client, kernel: &Kernel, names: bool) -> Result<()> {
    let thread = || {
        let (sender, receiver) = mpsc::channel();
        let kernel = kernel.another()?;
        let work = move || make_doubt(&kernel, &receiver);
        std::thread::Builder::new().name("corefs-doubt".into()).spawn(work)?;
        Ok::<_, Error>(sender)
    };
    let inodes = thread()?;
    let directories = (0..THREADS).map(|_| thread()).collect::<Result<_>>()?;
    let watch = client.watch(hear);
    TOLD.set(Some(Told { watch, names, inodes, directories, believed: Believed::new(TOLD_MAX) }));
    Ok(())
}

/// How long the kernel may believe anything, if it believes some things for `believed`.
pub fn longest(believed: Duration) -> Duration {
    if TOLD.with_borrow(Option::is_some) { believed.max(LONG) } else { believed }
}

/// A moment before a server is asked for what the kernel is then told.
#[derive(Clone, Copy)]
pub struct Asked(Moment);

pub fn asking() -> Asked {
    Asked(TOLD.with_borrow(|told| told.as_ref().map_or_else(Moment::default, |told| told.watch.now())))
}

impl Asked {
    /// For how long the kernel may believe an inode's attributes: `believed`, or for long, until it is told.
    pub fn attributes(self, inode: InodeId, believed: Duration) -> Duration {
        TOLD.with_borrow_mut(|told| match told {
            Some(told) => told.long(self.0, vec![News::Inode(inode)], believed),
            None => believed,
        })
    }

    /// The same of what a name leads to (nothing: `None`), and its attributes.
    pub fn name(self, parent: InodeId, name: &[u8], inode: Option<InodeId>, believed: Duration) -> Duration {
        TOLD.with_borrow_mut(|told| match told {
            Some(told) if told.names => {
                let mut about = vec![News::Name(parent, name.to_vec())];
                about.extend(inode.map(News::Inode));
                told.long(self.0, about, believed)
            }
            _ => believed,
        })
    }
}

impl Told {
    fn long(&mut self, asked: Moment, about: Vec<News>, believed: Duration) -> Duration {
        if self.watch.stands(asked, &about) && self.believed.add(about) { LONG } else { believed }
    }

    fn doubt(&self, news: News) {
        let thread = match &news {
            News::Inode(_) => &self.inodes,
            News::Name(parent, _) => &self.directories[parent.0 as usize % THREADS],
            News::Everything => return,
        };
        // The threads end with these senders, and not before them.
        _ = thread.send(news);
    }

    fn hear(&mut self, news: &News) {
        match news {
            News::Everything => {
                let all = self.believed.take_all();
                all.into_iter().for_each(|news| self.doubt(news));
            }
            news => {
                if let Some(news) = self.believed.take(news) {
                    self.doubt(news);
                }
            }
        }
    }
}

impl Believed {
    fn new(most: usize) -> Self {
        Self { since: HashMap::new(), most, swept: Instant::now() }
    }

    /// Whether there was room.
    fn add(&mut self, about: Vec<News>) -> bool {
        if self.since.len() + about.len() > self.most && self.swept.elapsed() >= SWEEP {
            self.since.retain(|_, since| since.elapsed() < OVER);
            self.swept = Instant::now();
        }
        if self.since.len() + about.len() > self.most {
            return false;
        }
        let now = Instant::now();
        self.since.extend(about.into_iter().map(|about| (about, now)));
        true
    }

    fn take(&mut self, news: &News) -> Option<News> {
        self.since.remove_entry(news).map(|(news, _)| news)
    }

    fn take_all(&mut self) -> Vec<News> {
        let believed = self.since.drain().filter(|(_, since)| since.elapsed() < OVER);
        believed.map(|(news, _)| news).collect()
    }
}

fn hear(news: &News) {
    if let News::Inode(inode) = news {
        marks::forget(*inode);
    }
    TOLD.with_borrow_mut(|told| {
        if let Some(told) = told {
            told.hear(news);
        }
    });
}

/// Has the kernel doubt what is sent, and once more a little later, until nobody can send any more.
fn make_doubt(kernel: &Kernel, doubted: &Receiver<News>) {
    let mut again: VecDeque<(Instant, News)> = VecDeque::new();
    loop {
        while let Some((_, news)) = again.pop_front_if(|(at, _)| *at <= Instant::now()) {
            doubt(kernel, &news);
        }
        let next = match again.front() {
            Some((at, _)) => doubted.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => doubted.recv().map_err(RecvTimeoutError::from),
        };
        match next {
            Ok(news) => {
                doubt(kernel, &news);
                again.push_back((Instant::now() + AGAIN, news));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn doubt(kernel: &Kernel, news: &News) {
    let told = match news {
        News::Inode(inode) => kernel.doubt_attributes(*inode),
        News::Name(parent, name) => kernel.doubt_name(*parent, name),
        News::Everything => Ok(()),
    };
    // What the kernel doesn't know it doesn't believe.
    if let Err(error) =
        told.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
    {
        tracing::debug!(%error, ?news, "the kernel was not told of a change");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_believed_is_taken_once_and_there_is_an_end_to_it() {
        let inode = |number| News::Inode(InodeId(number));
        let mut believed = Believed::new(3);
        assert!(believed.add(vec![inode(1), inode(2)]));
        assert!(!believed.add(vec![inode(3), inode(4)]) && believed.add(vec![inode(3)]));
        assert_eq!(believed.take(&inode(2)), Some(inode(2)));
        assert_eq!(believed.take(&inode(2)), None);
        assert_eq!(believed.take_all().len(), 2);
        assert!(believed.take_all().is_empty());
    }
}
