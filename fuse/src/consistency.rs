//! When programs on this mount see what others have done, and others what was done here.
//!
//! | | close-to-open | strict |
//! |---|---|---|
//! | names and attributes | the kernel believes them for a tenth of a second where this mount remembers them until it hears that others changed them, else for a second; or as long as it is told to | the kernel asks each time |
//! | names that aren't there | the same, for a second at most | the kernel asks each time |
//! | bytes read | from the kernel's cache, which forgets at open(2) what has changed | from storage, up to the end that the file has just then |
//! | bytes written | stored by close(2), fsync(2) or some seconds later | stored when write(2) returns, and the length and times are known |
//!
//! Strict holds between strict mounts. What another one writes, a strict mount shows as soon as that one has stored it.

use corefs_client::{Client, Credentials, File};
use corefs_wire::{InodeId, Result};
use fuser::FopenFlags;
use std::time::Duration;

/// How long what the kernel has heard of names and attributes is believed, unless somebody says otherwise; and that a name isn't there, at most.
pub const BELIEVED: Duration = Duration::from_secs(1);

/// The same of what this mount remembers until it hears that it has changed: the question costs next to nothing.
const REMEMBERED: Duration = Duration::from_millis(100);

/// What a mount promises about changes made elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consistency {
    /// Who opens a file sees what was written before it was last closed; names and attributes that others changed are seen after `believed`.
    CloseToOpen { believed: Duration },
    /// Who looks sees what was done before, wherever. Mappings excepted: they show what was there when the file was mapped.
    Strict,
}

impl Default for Consistency {
    fn default() -> Self {
        Self::CloseToOpen { believed: BELIEVED }
    }
}

impl Consistency {
    pub fn is_strict(self) -> bool {
        self == Self::Strict
    }

    /// How long the kernel may believe names and attributes: what other clients change is seen within it.
    pub fn believed(self) -> Duration {
        match self {
            Self::CloseToOpen { believed } => believed,
            Self::Strict => Duration::ZERO,
        }
    }

    /// How long what this process has heard is taken from its memory, and the kernel believes that a name isn't there: who waits for one to
    /// appear shouldn't have to know how long names are believed.
    pub fn remembered(self) -> Duration {
        self.believed().min(BELIEVED)
    }

    /// Whether to remember what was heard until others change it: not where less is believed than otherwise, nor where more is, whatever others do.
    pub fn remembers(self) -> bool {
        self.believed() == BELIEVED
    }

    /// How long the kernel may believe what a name leads to, and attributes of `inode`.
    pub fn believed_of(self, client: &Client, inode: InodeId) -> Duration {
        let remembered = self.remembers() && client.remembers(inode);
        if remembered { REMEMBERED } else { self.believed() }
    }

    /// The same of a name that leads nowhere.
    pub fn believed_of_nothing(self, client: &Client, parent: InodeId, name: &[u8]) -> Duration {
        let remembered = self.remembers() && client.remembers_nothing(parent, name);
        if remembered { REMEMBERED } else { self.remembered() }
    }

    /// How the kernel treats a file that is opened: strictly, without a cache of its bytes.
    pub fn opened(self) -> FopenFlags {
        match self {
            Self::CloseToOpen { .. } => FopenFlags::empty(),
            // Two writes to different places needn't wait for each other: nothing of the kernel's depends on their order.
            Self::Strict => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
        }
    }

    /// Before bytes are read: where the file ends, and whether it was cut.
    pub async fn before_reading(self, file: &File) -> Result<()> {
        match self {
            Self::CloseToOpen { .. } => Ok(()),
            Self::Strict => file.client().get_attr(&Credentials::root(), file.inode()).await.map(drop),
        }
    }

    /// Bytes were written, or taken away.
    pub async fn after_writing(self, file: &File) -> Result<()> {
        match self {
            Self::CloseToOpen { .. } => Ok(()),
            Self::Strict => file.sync().await,
        }
    }

    /// Attributes were changed, which may wait for the file to be closed otherwise.
    pub async fn after_changing(self, client: &Client, inode: InodeId) -> Result<()> {
        match self {
            Self::CloseToOpen { .. } => Ok(()),
            Self::Strict => client.push(&Credentials::root(), inode).await,
        }
    }
}
