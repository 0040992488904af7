//! The load: files of one chunk each on all chains, their blocks the keys; writers and readers that tell all they do.

use crate::record::{Log, now};
use crate::value::{BLOCK, block, id_of};
use corefs_client::{Client, CreateOptions, Credentials, File, Fs, OpenOptions};
use corefs_net::executor::{sleep, spawn};
use corefs_wire::{Error, ErrorCode, Result};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

const DIRECTORY: &[u8] = b"/history";
/// The chunk of such a file (bytes): the least there is.
const CHUNK: u32 = 64 << 10;
/// Mean pause between syncs, each of which makes the metadata servers commit something.
const SYNC_PAUSE: Duration = Duration::from_millis(100);
/// Files that are made at most until each chain has one.
const FILES_MAX: u32 = 1024;

/// Keys of files: `file * blocks + block`.
pub struct Shape {
    pub blocks: u32,
}

impl Shape {
    fn name(file: u32) -> Vec<u8> {
        [DIRECTORY, format!("/{file}").as_bytes()].concat()
    }
}

/// What the tasks of one process share.
struct Ground {
    log: Log,
    shape: Shape,
    process: u64,
    values: Cell<u64>,
    random: Cell<u64>,
    stop: PathBuf,
    stopped: Cell<bool>,
}

impl Ground {
    /// A number that nobody has used yet.
    fn fresh(&self) -> u64 {
        self.values.set(self.values.get() + 1);
        self.process << 40 | self.values.get()
    }

    fn below(&self, bound: u64) -> u64 {
        // The generator of xorshift64; the load needs variety and no more.
        let mut word = self.random.get();
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        self.random.set(word);
        word % bound.max(1)
    }

    /// A pause around `mean`.
    async fn pause(&self, mean: Duration) {
        if !mean.is_zero() {
            sleep(mean / 2 + mean.mul_f64(self.below(1000) as f64 / 1000.0)).await;
        }
    }

    async fn write(&self, file: &File, number: u32, at: u32) {
        let (key, id) = (number * self.shape.blocks + at, self.fresh());
        let bytes = block(key, id);
        let start = now();
        self.log.line(format_args!("B {key} {id} {start}"));
        let mut outcome = file.write_at(u64::from(at) * BLOCK as u64, &bytes).await;
        if outcome.is_ok() {
            outcome = file.flush().await;
        }
        let end = now();
        let told = if outcome.is_ok() { "ok" } else { "unknown" };
        self.log.line(format_args!("E {key} {id} {start} {end} {told}"));
        if let Err(error) = outcome {
            self.log.line(format_args!("N write {key} {start} {end} {}", plain(&error)));
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn sync(&self, file: &File, number: u32) {
        let start = now();
        match file.sync().await {
            Ok(()) => self.log.line(format_args!("S {number} {start} {}", now())),
            Err(error) => {
                let key = number * self.shape.blocks;
                self.log.line(format_args!("N sync {key} {start} {} {}", now(), plain(&error)));
                sleep(Duration::from_millis(100)).await;
            }
        }
    }

    async fn read(&self, file: &File, number: u32, at: u32) {
        let key = number * self.shape.blocks + at;
        let start = now();
        let outcome = file.read_at(u64::from(at) * BLOCK as u64, BLOCK).await;
        let end = now();
        match outcome.map(|data| id_of(key, &data)) {
            Ok(Ok(id)) => self.log.line(format_args!("R {key} {id} {start} {end}")),
            Ok(Err(why)) => self.log.line(format_args!("X {key} {start} {end} {why}")),
            Err(error) => {
                self.log.line(format_args!("N read {key} {start} {end} {}", plain(&error)));
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// An error in one line.
fn plain(error: &Error) -> String {
    error.to_string().replace('\n', " ")
}

/// Where the history goes and what else a process needs.
pub struct Settings {
    pub log: Log,
    pub blocks: u32,
    pub process: u64,
    pub seed: u64,
    /// The load ends when this file is there.
    pub stop: PathBuf,
}

impl Settings {
    fn ground(self) -> Rc<Ground> {
        Rc::new(Ground {
            log: self.log,
            shape: Shape { blocks: self.blocks },
            process: self.process,
            values: Cell::new(0),
            random: Cell::new((self.seed << 8 | self.process).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            stop: self.stop,
            stopped: Cell::new(false),
        })
    }
}

fn chain_of(client: &Client, file: &File) -> Result<u64> {
    let layout = file.attr().layout.ok_or(ErrorCode::Internal)?;
    Ok(client.routing().chain_of(&layout, 0)?.id.0)
}

/// Makes at least `files` files, and as many as it takes for each chain to have one; every block gets a value. How many files.
pub async fn prepare(client: Client, settings: Settings, files: u32) -> Result<u32> {
    let ground = settings.ground();
    let fs = client.fs(Credentials::root());
    fs.mkdir(DIRECTORY, 0o755).await?;
    let mut missing: BTreeSet<u64> = client.routing().chains.keys().map(|id| id.0).collect();
    let mut number = 0;
    while number < files || !missing.is_empty() {
        if number == FILES_MAX {
            return Err(Error::new(ErrorCode::Internal, format!("no file came to the chains {missing:?}")));
        }
        let options = CreateOptions {
            exclusive: true,
            direct: true,
            chunk_size: CHUNK,
            stripe: 1,
            ..Default::default()
        };
        let file = fs.create(&Shape::name(number), options).await?;
        missing.remove(&chain_of(&client, &file)?);
        for at in 0..ground.shape.blocks {
            ground.write(&file, number, at).await;
        }
        file.close().await?;
        number += 1;
    }
    Ok(number)
}

struct Opened {
    number: u32,
    chain: u64,
    file: File,
}

async fn open_all(client: &Client, ground: &Ground, write: bool) -> Result<Vec<Opened>> {
    let fs: Fs = client.fs(Credentials::root());
    let mut all = Vec::new();
    for number in 0..fs.list(DIRECTORY).await?.len() as u32 {
        let options = OpenOptions { write, direct: true, truncate: false, ahead: false };
        let file = fs.open(&Shape::name(number), options).await?;
        let chain = chain_of(client, &file)?;
        ground.log.line(format_args!("F {number} {chain}"));
        all.push(Opened { number, chain, file });
    }
    Ok(all)
}

/// One writer for each chain, so that each chain's service is seen whatever happens to the others; and `readers` of everything.
pub async fn run(
    client: Client,
    settings: Settings,
    readers: u32,
    write_pause: Duration,
    read_pause: Duration,
) -> Result<()> {
    let ground = settings.ground();
    let files = Rc::new(open_all(&client, &ground, true).await?);
    let mut chains: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (index, opened) in files.iter().enumerate() {
        chains.entry(opened.chain).or_default().push(index);
    }
    let mut tasks = Vec::new();
    for (_, mine) in chains {
        let (ground, files) = (Rc::clone(&ground), Rc::clone(&files));
        tasks.push(spawn(async move {
            while !ground.stopped.get() {
                let opened = &files[mine[ground.below(mine.len() as u64) as usize]];
                let at = ground.below(ground.shape.blocks.into()) as u32;
                ground.write(&opened.file, opened.number, at).await;
                ground.pause(write_pause).await;
            }
        }));
    }
    // By itself, so that writers don't wait for metadata servers: what doesn't serve is seen apart.
    let (syncing, opened) = (Rc::clone(&ground), Rc::clone(&files));
    tasks.push(spawn(async move {
        while !syncing.stopped.get() {
            let opened = &opened[syncing.below(opened.len() as u64) as usize];
            syncing.sync(&opened.file, opened.number).await;
            syncing.pause(SYNC_PAUSE).await;
        }
    }));
    for _ in 0..readers {
        let (ground, files) = (Rc::clone(&ground), Rc::clone(&files));
        tasks.push(spawn(async move {
            while !ground.stopped.get() {
                let opened = &files[ground.below(files.len() as u64) as usize];
                let at = ground.below(ground.shape.blocks.into()) as u32;
                ground.read(&opened.file, opened.number, at).await;
                ground.pause(read_pause).await;
            }
        }));
    }
    while !ground.stop.exists() {
        sleep(Duration::from_millis(50)).await;
    }
    ground.stopped.set(true);
    for task in tasks {
        task.await;
    }
    Ok(())
}

/// Reads every key, `rounds` times: replicas take turns in answering.
pub async fn read_all(client: Client, settings: Settings, rounds: u32) -> Result<()> {
    let ground = settings.ground();
    let files = open_all(&client, &ground, false).await?;
    for _ in 0..rounds {
        for opened in &files {
            for at in 0..ground.shape.blocks {
                ground.read(&opened.file, opened.number, at).await;
            }
        }
    }
    Ok(())
}

/// Fills the slices of `count` chains with files until there is no room, waits, and removes the files. Bytes that fitted.
pub async fn fill(client: Client, count: u32, most: u64, hold: Duration) -> Result<u64> {
    let fs = client.fs(Credentials::root());
    let bytes = vec![0x5A; 1 << 20];
    let mut written = 0;
    let names: Vec<Vec<u8>> = (0..count).map(|number| format!("/ballast-{number}").into_bytes()).collect();
    let mut outcome = Ok(());
    for name in &names {
        let options = CreateOptions { direct: true, stripe: 1, ..Default::default() };
        let file = fs.create(name, options).await?;
        let mut length = 0;
        while length < most {
            match file.write_at(length, &bytes).await {
                Ok(()) => length += bytes.len() as u64,
                Err(error) if error.code == ErrorCode::NoSpace => break,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        written += length;
        // What was told already needn't be told again.
        let _ = file.close().await;
    }
    sleep(hold).await;
    for name in &names {
        fs.remove(name).await?;
    }
    outcome.map(|()| written)
}
