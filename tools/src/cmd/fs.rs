//! `corefs fs`: the namespace without a mount.

use crate::connect::Cluster;
use crate::output;
use clap::Subcommand;
use corefs_client::fs::Links;
use corefs_client::{Attr, CreateOptions, Credentials, Fs, Kind};
use corefs_wire::{Error, ErrorCode, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Work with files without a mount. Paths inside corefs are absolute: `/data/train.bin`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    cluster: Cluster,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List a directory, or show one file.
    Ls {
        #[arg(default_value = "/")]
        path: OsString,
        /// With mode, links, owner, size and time.
        #[arg(short, long)]
        long: bool,
    },
    /// Show the attributes and the layout of files.
    Stat {
        #[arg(required = true)]
        paths: Vec<OsString>,
    },
    /// Write files to standard output.
    Cat {
        #[arg(required = true)]
        paths: Vec<OsString>,
    },
    /// Copy a local file (`-`: standard input), or with -r a directory, into corefs.
    Put {
        local: PathBuf,
        path: OsString,
        /// Copy directories and everything below.
        #[arg(short, long)]
        recursive: bool,
    },
    /// Copy a file, or with -r a directory, out of corefs (`-`: to standard output).
    Get {
        path: OsString,
        local: PathBuf,
        /// Copy directories and everything below.
        #[arg(short, long)]
        recursive: bool,
    },
    /// Make directories.
    Mkdir {
        #[arg(required = true)]
        paths: Vec<OsString>,
        /// Make those on the way too; fine when it exists.
        #[arg(short, long)]
        parents: bool,
    },
    /// Remove files, links and empty directories.
    Rm {
        #[arg(required = true)]
        paths: Vec<OsString>,
        /// Remove directories with everything below. As root in one step, however much it is: space comes back by and by. Others remove
        /// name by name what their permissions allow.
        #[arg(short, long)]
        recursive: bool,
    },
    /// Rename or move; replaces what is there, as rename(2).
    Mv { from: OsString, to: OsString },
    /// Show how much room there is.
    Df,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let Args { cluster, json, verb } = args;
    cluster.with_client("corefs fs", move |client| async move {
        let fs = client.fs(Credentials::of_process());
        perform(&fs, verb, json).await.map(|()| ExitCode::SUCCESS)
    })
}

async fn perform(fs: &Fs, verb: Verb, json: bool) -> Result<()> {
    match verb {
        Verb::Ls { path, long } => list(fs, path.as_bytes(), long, json).await,
        Verb::Stat { paths } => stat(fs, &paths, json).await,
        Verb::Cat { paths } => {
            let mut out = std::io::stdout().lock();
            for path in &paths {
                fs.get(path.as_bytes(), &mut out, &mut |_| ())
                    .await
                    .map_err(|error| error.of(shown(path.as_bytes())))?;
            }
            Ok(out.flush()?)
        }
        Verb::Put { local, path, recursive } => {
            let copy = Copy::new(json);
            copy.put(fs, &local, path.as_bytes(), recursive).await?;
            copy.report(json)
        }
        Verb::Get { path, local, recursive } => {
            let copy = Copy::new(json || local == Path::new("-"));
            copy.get(fs, path.as_bytes(), &local, recursive).await?;
            if local == Path::new("-") { Ok(()) } else { copy.report(json) }
        }
        Verb::Mkdir { paths, parents } => {
            for path in &paths {
                let path = path.as_bytes();
                let made =
                    if parents { fs.mkdir_all(path, 0o755).await } else { fs.mkdir(path, 0o755).await };
                made.map_err(|error| error.of(shown(path)))?;
            }
            done(json, paths.len())
        }
        Verb::Rm { paths, recursive } => {
            for path in &paths {
                let path = path.as_bytes();
                let gone = if recursive { fs.remove_all(path).await } else { fs.remove(path).await };
                gone.map_err(|error| error.of(shown(path)))?;
            }
            done(json, paths.len())
        }
        Verb::Mv { from, to } => {
            fs.rename(from.as_bytes(), to.as_bytes(), 0)
                .await
                .map_err(|error| error.of(shown(from.as_bytes())))?;
            done(json, 1)
        }
        Verb::Df => {
            let space = fs.space().await?;
            let used = space.total - space.free.min(space.total);
            if json {
                return output::json(
                    &json!({"total": space.total, "used": used, "free": space.free, "files": space.files}),
                );
            }
            let [total, used, free] = [space.total, used, space.free].map(output::size);
            output::line(&format!("total {total}, used {used}, free {free}, files {}", space.files))
        }
    }
}

fn done(json: bool, count: usize) -> Result<()> {
    if json { output::json(&json!({"done": count})) } else { Ok(()) }
}

/// A path or name as people see it: what isn't UTF-8 is shown as replacement characters.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::CharDevice => "character device",
        Kind::BlockDevice => "block device",
        _ => "file",
    }
}

fn describe(name: &[u8], attr: &Attr) -> Value {
    json!({
        "name": shown(name), "inode": attr.inode.0, "kind": kind(attr.kind), "mode": format!("{:04o}", attr.mode),
        "uid": attr.uid, "gid": attr.gid, "size": attr.size, "links": attr.nlink,
        "atime_ns": attr.atime, "mtime_ns": attr.mtime, "ctime_ns": attr.ctime, "btime_ns": attr.btime,
        "layout": attr.layout.map(|layout| json!({
            "chunk_size": layout.chunk_size, "stripe": layout.stripe, "table": layout.table_id, "seed": layout.seed,
        })),
    })
}

fn long_line(name: &[u8], attr: &Attr) -> String {
    let (name, kind, size) = (shown(name), kind(attr.kind), output::size(attr.size));
    let seconds = attr.mtime.div_euclid(1_000_000_000);
    format!(
        "{:04o} {:>3} {:>5}:{:<5} {size:>10} @{seconds} {kind:<9} {name}",
        attr.mode, attr.nlink, attr.uid, attr.gid
    )
}

async fn list(fs: &Fs, path: &[u8], long: bool, json: bool) -> Result<()> {
    let attr = fs.stat(path).await.map_err(|error| error.of(shown(path)))?;
    let mut rows: Vec<(Vec<u8>, Option<Attr>)> = Vec::new();
    if attr.is_directory() {
        rows.extend(fs.list(path).await?.into_iter().map(|entry| (entry.name, entry.attr)));
    } else {
        rows.push((path.to_vec(), Some(attr)));
    }
    // An entry without attributes was removed while we listed.
    let rows = rows.into_iter().filter_map(|(name, attr)| attr.map(|attr| (name, attr)));
    if json {
        return output::json(&rows.map(|(name, attr)| describe(&name, &attr)).collect::<Vec<_>>());
    }
    for (name, attr) in rows {
        output::line(&if long { long_line(&name, &attr) } else { shown(&name) })?;
    }
    Ok(())
}

async fn stat(fs: &Fs, paths: &[OsString], json: bool) -> Result<()> {
    let mut rows = Vec::new();
    for path in paths {
        let attr = fs.lstat(path.as_bytes()).await.map_err(|error| error.of(shown(path.as_bytes())))?;
        if json {
            rows.push(describe(path.as_bytes(), &attr));
            continue;
        }
        output::line(&long_line(path.as_bytes(), &attr))?;
        output::line(&format!("  {} with {} links, changed at {} ns", attr.inode, attr.nlink, attr.ctime))?;
        if let Some(layout) = attr.layout {
            let size = output::size(layout.chunk_size.into());
            output::line(&format!(
                "  chunks of {size} over {} chains of table {}",
                layout.stripe, layout.table_id
            ))?;
        }
    }
    if json { output::json(&rows) } else { Ok(()) }
}

/// A copy in or out: what was done so far, and its progress bar.
struct Copy {
    bar: ProgressBar,
    files: std::cell::Cell<u64>,
}

impl Copy {
    fn new(quiet: bool) -> Self {
        // Without a terminal the bar hides itself.
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {bytes} {bytes_per_sec} {elapsed} {wide_msg}")
        {
            bar.set_style(style);
        }
        Self { bar, files: std::cell::Cell::new(0) }
    }

    fn report(&self, json: bool) -> Result<()> {
        self.bar.finish_and_clear();
        let (files, bytes) = (self.files.get(), self.bar.position());
        if json {
            return output::json(&json!({"files": files, "bytes": bytes}));
        }
        output::line(&format!("{files} files, {}", output::size(bytes)))
    }

    async fn put(&self, fs: &Fs, local: &Path, path: &[u8], recursive: bool) -> Result<()> {
        if local == Path::new("-") {
            return self.put_stream(fs, &mut std::io::stdin().lock(), path, 0o644).await;
        }
        let of = |error: std::io::Error| Error::from(error).of(local.display());
        let meta = std::fs::symlink_metadata(local).map_err(of)?;
        if meta.is_symlink() {
            let target = std::fs::read_link(local).map_err(of)?;
            fs.symlink(target.as_os_str().as_bytes(), path).await.map_err(|error| error.of(shown(path)))?;
            self.files.set(self.files.get() + 1);
        } else if meta.is_dir() {
            if !recursive {
                let what = format!("{} is a directory; give -r to copy it", local.display());
                return Err(Error::new(ErrorCode::IsDirectory, what));
            }
            fs.mkdir_all(path, meta.mode() & 0o7777).await.map_err(|error| error.of(shown(path)))?;
            for entry in std::fs::read_dir(local).map_err(of)? {
                let entry = entry.map_err(of)?;
                let below = joined(path, entry.file_name().as_bytes());
                Box::pin(self.put(fs, &entry.path(), &below, true)).await?;
            }
        } else if meta.is_file() {
            self.put_stream(fs, &mut File::open(local).map_err(of)?, path, meta.mode() & 0o7777).await?;
        } else {
            tracing::warn!("{} is neither file, directory nor symlink: left out", local.display());
        }
        Ok(())
    }

    async fn put_stream(&self, fs: &Fs, source: &mut dyn Read, path: &[u8], mode: u32) -> Result<()> {
        self.bar.set_message(shown(path));
        let options = CreateOptions { mode, truncate: true, ..CreateOptions::default() };
        let bar = &self.bar;
        let before = bar.position();
        let put = fs.put(path, options, source, &mut |bytes| bar.set_position(before + bytes)).await;
        let bytes = put.map_err(|error| error.of(shown(path)))?;
        bar.set_position(before + bytes);
        self.files.set(self.files.get() + 1);
        Ok(())
    }

    async fn get(&self, fs: &Fs, path: &[u8], local: &Path, recursive: bool) -> Result<()> {
        let attr = fs.resolve(path, if recursive { Links::Keep } else { Links::Follow }).await;
        let attr = attr.map_err(|error| error.of(shown(path)))?;
        let of = |error: std::io::Error| Error::from(error).of(local.display());
        if local == Path::new("-") {
            let mut out = std::io::stdout().lock();
            fs.get(path, &mut out, &mut |_| ()).await.map_err(|error| error.of(shown(path)))?;
            return out.flush().map_err(of);
        }
        if attr.is_directory() {
            if !recursive {
                return Err(Error::new(
                    ErrorCode::IsDirectory,
                    format!("{}: give -r to copy it", shown(path)),
                ));
            }
            std::fs::create_dir_all(local).map_err(of)?;
            for entry in fs.list(path).await? {
                let below = local.join(std::ffi::OsStr::from_bytes(&entry.name));
                Box::pin(self.get(fs, &joined(path, &entry.name), &below, true)).await?;
            }
        } else if attr.is_symlink() {
            let target = fs.read_link(path).await?;
            std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(&target), local).map_err(of)?;
            self.files.set(self.files.get() + 1);
            return Ok(());
        } else if attr.is_file() {
            self.bar.set_message(shown(path));
            let mut file = File::create(local).map_err(of)?;
            let (bar, before) = (&self.bar, self.bar.position());
            let got = fs.get(path, &mut file, &mut |bytes| bar.set_position(before + bytes)).await;
            let bytes = got.map_err(|error| error.of(shown(path)))?;
            bar.set_position(before + bytes);
            self.files.set(self.files.get() + 1);
        } else {
            tracing::warn!("{} is a {}: left out", shown(path), kind(attr.kind));
            return Ok(());
        }
        std::fs::set_permissions(local, std::fs::Permissions::from_mode(attr.mode)).map_err(of)
    }
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if path.last() != Some(&b'/') {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
