//! Metadata operations that must know which files are open here.

use super::{Client, Inner};
use crate::file::{CreateOptions, File, OpenOptions};
use crate::guess::Kind as Guessed;
use crate::inode::Inode;
use crate::meta::{NewInode, Page, Unlinked};
use crate::{Attr, Changes, Credentials, Kind};
use corefs_wire::limits::HOLDS_MAX;
use corefs_wire::{Class, ClientId, Error, ErrorCode, InodeId, Result};
use std::rc::Rc;
use std::time::{Duration, Instant};

impl Client {
    /// The attributes; of a file that is open here with what was written to it.
    pub async fn get_attr(&self, who: &Credentials, inode: InodeId) -> Result<Attr> {
        if let Some(attr) = self.0.remembered(who, inode) {
            return Ok(attr);
        }
        let asked = self.0.asking();
        let attr = self.0.meta.get_attr(who, inode).await?;
        self.0.remember_attr(asked, &attr);
        Ok(self.0.patched(attr))
    }

    /// As [`get_attr`](Self::get_attr), but of a file that is open here nobody is asked again within `believed` of the last
    /// answer, unless this client has changed anything since: a name that goes, or a new one, shows at once.
    pub async fn get_attr_within(
        &self,
        who: &Credentials,
        inode: InodeId,
        believed: Duration,
    ) -> Result<Attr> {
        let fresh = |heard: Instant| heard >= self.0.meta.changed() && heard.elapsed() < believed;
        match self.0.live(inode).filter(|live| fresh(live.heard.get())) {
            Some(live) => Ok(live.attr()),
            None => self.get_attr(who, inode).await,
        }
    }

    /// What is known here of a file that is open.
    pub fn open_attr(&self, inode: InodeId) -> Option<Attr> {
        self.0.live(inode).map(|live| live.attr())
    }

    /// Looks up a name; as [`get_attr`](Self::get_attr) of what it finds.
    pub async fn lookup(&self, who: &Credentials, parent: InodeId, name: &[u8]) -> Result<Attr> {
        if let Some(led) = self.0.remembered_name(who, parent, name) {
            return led.ok_or_else(|| ErrorCode::NotFound.into());
        }
        let asked = self.0.asking();
        let found = self.0.meta.lookup(who, parent, name).await;
        match &found {
            Ok(attr) => self.0.remember_name(asked, parent, name, Some(attr)),
            Err(error) if error.code == ErrorCode::NotFound => {
                self.0.remember_name(asked, parent, name, None)
            }
            Err(_) => {}
        }
        found.map(|attr| self.0.patched(attr))
    }

    /// Entries after `after`, with `plus` each with its attributes.
    pub async fn read_dir(
        &self,
        who: &Credentials,
        inode: InodeId,
        after: &[u8],
        limit: u32,
        plus: bool,
    ) -> Result<Page> {
        let asked = self.0.asking();
        let mut page = self.0.meta.read_dir(who, inode, after, limit, plus).await?;
        for entry in &mut page.entries {
            if let Some(attr) = &entry.attr {
                self.0.remember_name(asked, inode, &entry.name, Some(attr));
            }
            entry.attr = entry.attr.map(|attr| self.0.patched(attr));
        }
        Ok(page)
    }

    /// Changes attributes; what was written here before is written before.
    pub async fn set_attr(&self, who: &Credentials, inode: InodeId, changes: Changes) -> Result<Attr> {
        if changes.size.is_some() {
            self.0.end_first(inode).await;
        }
        let Some(live) = self.0.live(inode) else { return self.0.meta.set_attr(who, inode, changes).await };
        if who.privileged && live.defer(&changes) {
            return Ok(live.attr());
        }
        if changes.size.is_some() {
            self.0.settle(&live).await;
        }
        let before = live.unsynced.get();
        let attr = self.0.meta.set_attr(who, inode, changes).await?;
        if changes.mtime.is_some() && live.unsynced.get().mtime == before.mtime {
            // The time that was set stands, although bytes written before it are synced later.
            live.unsynced.set(crate::inode::Unsynced { mtime: 0, ..live.unsynced.get() });
        }
        live.supersede(&changes, &attr);
        live.absorb(&attr);
        Ok(live.attr())
    }

    /// Tells the metadata servers now what they would hear when a file that is open here is closed. Nothing for others.
    pub async fn push(&self, who: &Credentials, inode: InodeId) -> Result<()> {
        match self.0.live(inode) {
            Some(live) => self.0.push(&live, who).await,
            None => Ok(()),
        }
    }

    /// Opens a file that exists. `IsDirectory`, `NotSupported` for other kinds.
    pub async fn open(&self, who: &Credentials, inode: InodeId, options: OpenOptions) -> Result<File> {
        if options.truncate {
            self.0.end_first(inode).await;
        }
        if options.truncate
            && let Some(live) = self.0.live(inode)
        {
            self.0.settle(&live).await;
        }
        let (of, gone) = (self.0.client(), self.0.names_gone.borrow().count());
        // Held meanwhile, so that it isn't taken for a later one.
        let live = self.0.live(inode);
        let edition = |live: Option<&Rc<Inode>>| live.map(|live| live.edition.get());
        let before = edition(live.as_ref());
        let (attr, session, bytes) = match options.ahead && !options.write && !options.truncate {
            true => self.0.meta.look(who, inode).await.map(|(attr, bytes)| (attr, 0, bytes))?,
            false => {
                let (attr, session) = self.0.meta.open(who, inode, options.write, options.truncate).await?;
                (attr, session, None)
            }
        };
        self.0.compare_attr(&attr);
        let untouched = edition(self.0.live(inode).as_ref()) == before;
        let file = self.0.handle(&attr, (session, of), gone, options.direct, who)?;
        if let Some(bytes) = bytes.filter(|_| untouched) {
            file.read_ahead(bytes);
        }
        let sessions = &file.shared().sessions;
        if sessions.is_nameless() && !sessions.keep_it() {
            // Whoever took the name away couldn't know that it is open.
            self.0.hold(file.shared()).await?;
        }
        Ok(file)
    }

    /// Creates a file and opens it for writing, or opens what is there unless `exclusive`.
    /// Says whether it was created.
    pub async fn create(
        &self,
        who: &Credentials,
        parent: InodeId,
        name: &[u8],
        options: CreateOptions,
    ) -> Result<(File, bool)> {
        let kind = Guessed::of(name);
        let node = NewInode {
            exclusive: options.exclusive,
            open: true,
            inline: (options.chunk_size, options.stripe) == (0, 0) && self.0.guess.stays_small(kind),
            chunk_size: options.chunk_size,
            stripe: options.stripe,
            umask: options.umask,
            ..NewInode::new(Kind::File, options.mode)
        };
        let (of, gone) = (self.0.client(), self.0.names_gone.borrow().count());
        let made = self.0.meta.create(who, parent, name, &node).await?;
        self.0.compare_attr(&made.attr);
        let file = self.0.handle(&made.attr, (made.session, of), gone, options.direct, who)?;
        if made.created {
            file.shared().kind.set(Some(kind));
        }
        if options.truncate && !made.created && file.length() > 0 {
            file.truncate(0).await?;
        }
        Ok((file, made.created))
    }

    /// Removes a name. Files that are open here stay readable until they are closed.
    pub async fn unlink(&self, who: &Credentials, parent: InodeId, name: &[u8]) -> Result<()> {
        let (hold, of) = (self.0.to_hold(who, parent, name).await?, self.0.client());
        let gone = self.0.meta.unlink(who, parent, name, &hold).await;
        self.0.unlinked(gone, of).await
    }

    /// Renames; a file that is replaced stays readable as in [`unlink`](Self::unlink).
    pub async fn rename(
        &self,
        who: &Credentials,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        flags: u32,
    ) -> Result<()> {
        let hold = if flags == 0 { self.0.to_hold(who, to.0, to.1).await? } else { Vec::new() };
        let of = self.0.client();
        let gone = self.0.meta.rename(who, from, to, flags, &hold).await;
        self.0.unlinked(gone, of).await
    }
}

impl Inner {
    /// The attributes with what was written here.
    pub fn patched(&self, attr: Attr) -> Attr {
        match self.live(attr.inode) {
            Some(live) => {
                live.absorb(&attr);
                live.attr()
            }
            None => attr,
        }
    }

    /// Ends what is to be ended of an inode before it is cut: with a session for writing all chains would have to be asked for bytes.
    async fn end_first(&self, inode: InodeId) {
        if self.ends.has(inode) {
            self.ends.send(&self.meta).await;
        }
    }

    /// A handle of a file, sharing what is known of its inode. `session`: 0 if it has none; and under whose lease it was begun. `gone`:
    /// names that had gone when it was asked for.
    fn handle(
        self: &Rc<Self>,
        attr: &Attr,
        session: (u64, ClientId),
        gone: u64,
        direct: bool,
        who: &Credentials,
    ) -> Result<File> {
        let layout = match (attr.kind, attr.layout) {
            (Kind::File, Some(layout)) => layout,
            (Kind::Directory, _) => {
                return Err(Error::new(ErrorCode::IsDirectory, format!("{} is a directory", attr.inode)));
            }
            _ => return Err(Error::new(ErrorCode::NotSupported, format!("{} is not a file", attr.inode))),
        };
        let inode = match self.live(attr.inode) {
            Some(inode) => {
                inode.absorb(attr);
                inode
            }
            None => {
                let inode = Rc::new(Inode::new(*attr, layout));
                self.inodes.borrow_mut().insert(attr.inode, Rc::downgrade(&inode));
                inode
            }
        };
        if self.names_gone.borrow().since(gone, [&attr.inode]) {
            inode.sessions.lost_a_name();
        }
        self.unheld.borrow_mut().insert(attr.inode);
        Ok(File::new(Client(Rc::clone(self)), inode, session, direct, who.clone()))
    }

    /// The files that are open here: whichever of them a name leads to is to keep its bytes without the name, whoever closes it first. When
    /// there are too many to name, the one is held at once.
    async fn to_hold(&self, who: &Credentials, parent: InodeId, name: &[u8]) -> Result<Vec<InodeId>> {
        let is_unheld = |inode: &Rc<Inode>| inode.handles.get() > 0 && !inode.sessions.is_held();
        {
            let mut unheld = self.unheld.borrow_mut();
            unheld.retain(|inode| self.live(*inode).is_some_and(|inode| is_unheld(&inode)));
            if unheld.len() <= HOLDS_MAX {
                return Ok(unheld.iter().copied().collect());
            }
        }
        let attr = match self.meta.lookup(who, parent, name).await {
            Ok(attr) => attr,
            // The operation itself will say what is wrong.
            Err(_) => return Ok(Vec::new()),
        };
        if let Some(inode) = self.live(attr.inode).filter(is_unheld) {
            self.hold(&inode).await?;
        }
        Ok(Vec::new())
    }

    /// A name was taken away, and with it began a session under the lease of `of`, if the file was among those to hold. One that was opened
    /// here meanwhile is held now: for a moment it is still there.
    async fn unlinked(&self, gone: Result<Unlinked>, of: ClientId) -> Result<()> {
        if gone.as_ref().is_err_and(|error| error.class() != Class::Fatal) {
            // It may have gone, and may have led to any.
            self.all_live().iter().for_each(|inode| inode.sessions.lost_a_name());
        }
        let gone = gone?;
        if gone.inode != InodeId(0) {
            self.names_gone.borrow_mut().add(gone.inode);
        }
        let open = self.live(gone.inode).filter(|inode| inode.handles.get() > 0);
        if let Some(inode) = &open {
            inode.sessions.lost_a_name();
        }
        match open {
            Some(inode) if gone.session != 0 => {
                if !inode.sessions.held(gone.session, of) {
                    self.end_later(gone.inode, gone.session);
                }
            }
            Some(inode) if !inode.sessions.keep_it() => {
                // It was opened, or the last session ended, since what to hold was named.
                if let Err(error) = self.hold(&inode).await {
                    tracing::debug!(%error, inode = %gone.inode, "holding an unlinked file");
                }
            }
            _ => self.end_later(gone.inode, gone.session),
        }
        Ok(())
    }

    /// Keeps a file's bytes for handles without a session, whatever becomes of its names. `NoSuchInode` when it is gone.
    pub async fn hold(&self, inode: &Rc<Inode>) -> Result<()> {
        let of = self.client();
        let (attr, session) = self.meta.hold(&Credentials::root(), inode.id()).await?;
        inode.absorb(&attr);
        if inode.handles.get() > 0 && inode.sessions.held(session, of) {
            return Ok(());
        }
        // Closed meanwhile, or held by another operation as well: nobody would end this session later.
        self.end_later(inode.id(), session);
        Ok(())
    }
}
