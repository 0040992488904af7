//! `corefs perf`: from flags to a report.

use crate::args::{Access, BareArgs, DiskArgs, Json, LoadArgs, MetaArgs, MixedArgs, Verb};
use crate::bare::{self, BARE, WIRE};
use crate::compare;
use crate::crowd::Crowd;
use crate::disk::{self, DURABLE, Ground, SIZE_DEFAULT};
use crate::draw::Style;
use crate::driver::Live;
use crate::machine::Machine;
use crate::mounted::{self, Processes};
use crate::names::{self, native, posix};
use crate::native::Native;
use crate::progress::Watch;
use crate::report::{Report, Tally};
use crate::workload::{Direction, Order, Over, Until, Workload};
use crate::{diff, outputs};
use corefs_client::Hedge;
use corefs_net::transport::Choice;
use corefs_wire::limits::BLOCK;
use corefs_wire::{Error, ErrorCode, Result};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What a command has to say at its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    /// For standard output.
    pub text: String,
    /// Whether that is bad news, which the exit code must tell.
    pub failed: bool,
}

/// Does what the flags say, and writes the files that they name. `live` ends it early.
pub fn run(verb: &Verb, live: &Arc<Live>) -> Result<Said> {
    let json = verb.json();
    let (report, failed) = match verb {
        Verb::Diff(args) => return diff::run(args),
        // What failed when it was measured is told, and no failure now.
        Verb::Report(args) => (outputs::read(&args.file)?, false),
        _ => {
            outputs::check(verb.outputs(), json)?;
            let report = measure(verb, live)?;
            let failed = report.failed();
            (report, failed)
        }
    };
    outputs::write(&report, verb.outputs(), json)?;
    let text = match json {
        Json::Stdout => report.to_json(),
        _ => report.to_text(Style::of_stdout()).trim_end().to_owned(),
    };
    Ok(Said { text, failed })
}

fn measure(verb: &Verb, live: &Arc<Live>) -> Result<Report> {
    let watch = if verb.json() == Json::Stdout { Watch::Nothing } else { Watch::terminal() };
    match verb {
        Verb::Disk(args) => raw(args, live, watch),
        Verb::Randread(args) => load(args, Access::Randread, live, watch),
        Verb::Randwrite(args) => load(args, Access::Randwrite, live, watch),
        Verb::Seqread(args) => load(args, Access::Seqread, live, watch),
        Verb::Seqwrite(args) => load(args, Access::Seqwrite, live, watch),
        Verb::Compare(args) => compare::run(args, live, watch),
        Verb::Meta(args) => meta(args, live),
        Verb::Wire(args) => bare(args, WIRE, live, watch),
        Verb::Bare(args) => bare(args, BARE, live, watch),
        Verb::ServeBare(_) => Err(Error::new(ErrorCode::Internal, "a server measures nothing")),
        Verb::Mixed(args) => mixed(args, live, watch),
        Verb::Diff(_) | Verb::Report(_) => Err(ErrorCode::Internal.into()),
    }
}

fn raw(args: &DiskArgs, live: &Live, watch: Watch) -> Result<Report> {
    // Nonsense is refused before anything is written.
    args.run.workload(args.access, args.run.size.map_or(SIZE_DEFAULT, |size| size.0))?;
    if args.against_fio && !crate::fio::installed() {
        return Err(Error::new(
            ErrorCode::BadConfig,
            "--against-fio: fio isn't installed (Debian's package is called fio)",
        ));
    }
    let size = args.run.size.map(|size| size.0);
    let ground = Ground::find(&args.path, size, args.access.direction(), args.run.seed, live, watch)?;
    let workload = args.run.workload(args.access, ground.bytes())?;
    let mut report = Report::new(Machine::look(Some(ground.path())));
    configure(&mut report, &workload);
    report.set("path", args.path.display().to_string());
    if let Some(copies) = args.copies {
        report.set("copies", copies);
    }
    report.add(if args.against_fio {
        disk::measure_against_fio(ground.path(), &workload, live, watch)?
    } else {
        let tally = disk::measure(ground.path(), &workload, args.copies, live, watch)?;
        match args.copies {
            Some(_) => tally.into_row(DURABLE.to_owned()),
            None => disk::row(&workload, tally),
        }
    });
    Ok(report)
}

/// The bounds without a file system; `bare` beside the raw disk.
fn bare(args: &BareArgs, mode: &str, live: &Arc<Live>, watch: Watch) -> Result<Report> {
    let size = args.run.size.map(|size| size.0);
    args.workload(size.unwrap_or(SIZE_DEFAULT))?;
    let ground = match mode {
        BARE => Some(Ground::find(&args.path, size, Direction::Read, args.run.seed, live, watch)?),
        _ => None,
    };
    let bytes = ground.as_ref().map_or(size.unwrap_or(SIZE_DEFAULT), Ground::bytes);
    let workload = args.workload(bytes)?;
    let mut report = Report::new(Machine::look(Some(&args.path)));
    configure(&mut report, &workload);
    report.set("servers", args.servers);
    report.set("busy_poll", args.busy_poll);
    if let Some(ground) = &ground {
        report.add(disk::row(&workload, disk::measure(ground.path(), &workload, None, live, watch)?));
    }
    let poll = Duration::from_micros(args.busy_poll);
    let server = bare::Server::start(ground.as_ref().map(Ground::path), args.servers as usize, poll)?;
    report.add(server.run(&workload, poll, live, watch)?.into_row(mode));
    Ok(report)
}

fn load(args: &LoadArgs, access: Access, live: &Arc<Live>, watch: Watch) -> Result<Report> {
    let workload = args.workload(access, args.run.size.map_or(SIZE_DEFAULT, |size| size.0))?;
    drive(args, &workload, live, watch)
}

fn mixed(args: &MixedArgs, live: &Arc<Live>, watch: Watch) -> Result<Report> {
    let workload = args.workload(args.load.run.size.map_or(SIZE_DEFAULT, |size| size.0))?;
    drive(&args.load, &workload, live, watch)
}

fn drive(args: &LoadArgs, workload: &Workload, live: &Arc<Live>, watch: Watch) -> Result<Report> {
    let managers = args.managers()?;
    let secret = args.secret()?;
    if !args.path.is_absolute() && !managers.is_empty() {
        return Err(Error::new(
            ErrorCode::BadConfig,
            format!("--path {}: must be absolute", args.path.display()),
        ));
    }
    if managers.is_empty() && args.path == Path::new("/corefs-perf.dat") {
        let what =
            "give --manager ADDRESS to measure the native client, or --path FILE in a mounted file system";
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    let mut report = Report::new(Machine::look(args.ceiling.as_deref()));
    configure(&mut report, workload);
    report.set("path", args.path.display().to_string());
    if let Some(path) = &args.ceiling {
        report.add(ceiling(path, workload, live, watch)?);
    }
    let (mode, tally) = if managers.is_empty() {
        if reads_first(workload) {
            mounted::prepare_for(&args.path, workload, live, watch)?;
        }
        ("mount", mounted::run(&args.path, workload, &Processes::default(), live, watch)?)
    } else {
        report.set("manager", args.manager.join(","));
        let native = Native::connect(
            managers,
            secret,
            workload.cores,
            Duration::from_micros(args.busy_poll),
            args.transport()?,
            args.hedge,
        )?;
        let outcome = native_run(&native, args, workload, live, watch);
        // The measurement's own error says more than that of an end that follows from it.
        let ended = native.stop();
        let tally = outcome?;
        ended?;
        ("native", tally)
    };
    let reads = match workload.direction {
        Direction::Mixed { reads } => Some(reads),
        _ => None,
    };
    for mut row in tally.into_rows(&format!("{mode}_{}", workload.name()), reads) {
        row.extras.rate = workload.rate;
        report.add(row);
    }
    Ok(report)
}

/// Whether the files must be there, fully written: all but sequential writes go to places that must have been written before,
/// or would measure how files grow.
fn reads_first(workload: &Workload) -> bool {
    workload.direction == Direction::Read || workload.order == Order::Random
}

/// The same tree in each of the places that the flags name, phase by phase in turns, so that all meet the same machine.
fn meta(args: &MetaArgs, live: &Arc<Live>) -> Result<Report> {
    let plan = args.plan()?;
    let mut report = Report::new(Machine::look(args.local.as_deref()));
    report.set("access", "meta");
    report.set("files", plan.files);
    report.set("directories", plan.directories);
    report.set("deep", plan.deep);
    report.set("threads", plan.lanes);
    report.set("cores", args.cores);
    if plan.bytes > 0 {
        report.set("bytes", plan.bytes);
    }
    if plan.shuffle {
        report.set("shuffle", true);
    }
    report.set("version", env!("CARGO_PKG_VERSION"));
    let places = [("mount", &args.mounted), ("local", &args.local)];
    let mut trees = Vec::new();
    for (mode, under) in places {
        if let Some(under) = under {
            let mut tree = posix::Tree::new(under, plan)?;
            if args.keep {
                tree.keep();
            }
            trees.push((mode, tree));
        }
    }
    let native = match args.managers()? {
        managers if managers.is_empty() => None,
        managers => {
            let native = Native::connect(
                managers,
                args.secret()?,
                args.cores,
                Duration::ZERO,
                Choice::Auto,
                Hedge::Auto,
            )?;
            let tree = native::Tree::new(&native, &args.path, plan)?;
            Some((native, tree))
        }
    };
    if let Some(under) = &args.local {
        let mut row = posix::flushes(under)?.into_row("local_flush");
        row.bytes_per_second = None;
        report.add(row);
    }
    for phase in args.phases() {
        if let Some((native, tree)) = &native {
            report.add(names::row("native", phase, tree.run(native, phase, live)?));
        }
        for (mode, tree) in &trees {
            // The servers of a mount are those of the managers that were named.
            let servers = native.as_ref().filter(|_| *mode == "mount").map(|(native, _)| native);
            report.add(names::row(mode, phase, tree.run(phase, servers, live)?));
        }
    }
    if let Some((native, tree)) = native {
        let removed = if args.keep { Ok(()) } else { tree.remove(&native) };
        native.stop()?;
        removed?;
    }
    Ok(report)
}

fn native_run(
    native: &Native,
    args: &LoadArgs,
    workload: &Workload,
    live: &Arc<Live>,
    watch: Watch,
) -> Result<Tally> {
    if reads_first(workload) {
        native.prepare_for(&args.path, workload, live, watch)?;
    }
    let crowd = match args.connections {
        0 => None,
        each => Some(crowd(native, args, each)?),
    };
    let mut tally = native.run(&args.path, workload, live, watch)?;
    tally.crowd = crowd.map(|(_open, bytes)| (args.connections.into(), bytes));
    Ok(tally)
}

/// Idle connections, and the memory that each takes of the servers (bytes).
fn crowd(native: &Native, args: &LoadArgs, each: u32) -> Result<(Crowd, f64)> {
    let (shards, before) = (native.shards()?, native.servers_memory()?);
    let open = Crowd::open(&shards, each as usize, args.secret()?)?;
    let grown = native.servers_memory()?.saturating_sub(before);
    Ok((open, grown as f64 / (shards.len() * each as usize).max(1) as f64))
}

/// The raw disk at `path` with the same depth and block, in random reads of whole blocks, all alike.
fn ceiling(path: &Path, workload: &Workload, live: &Live, watch: Watch) -> Result<crate::report::Row> {
    // A disk that is asked for a part of a block reads all of it.
    let block = workload.block.next_multiple_of(BLOCK as u64);
    let raw = Workload {
        direction: Direction::Read,
        order: Order::Random,
        rate: None,
        verify: false,
        block,
        working_set: workload.working_set.next_multiple_of(block),
        files: 1,
        skew: None,
        unaligned: false,
        ..workload.clone()
    };
    disk::suits(&raw)?;
    let ground = Ground::find(path, Some(raw.working_set), Direction::Read, raw.seed, live, watch)?;
    let tally = disk::measure(ground.path(), &raw, None, live, watch)?;
    Ok(disk::row(&raw, tally))
}

/// Notes the run's settings under the names of their flags.
pub fn configure(report: &mut Report, workload: &Workload) {
    report.set("access", workload.name());
    report.set("size", workload.working_set);
    report.set("block", workload.block);
    report.set("depth", workload.depth);
    report.set("batch", workload.batch);
    report.set("cores", workload.cores);
    if let Until::Elapsed { warmup, measured } = workload.until {
        report.set("seconds", measured.as_secs_f64());
        report.set("runtime_warmup", warmup.as_secs_f64());
    }
    // Only where it isn't as ever, so that reports of other versions can be compared.
    if let Direction::Mixed { reads } = workload.direction {
        report.set("reads", reads);
    }
    if workload.files > 1 {
        report.set("files", workload.files);
    }
    if let Some(skew) = workload.skew {
        report.set("zipf", skew.theta);
        report.set("zipf_over", if skew.over == Over::Files { "files" } else { "blocks" });
    }
    if workload.unaligned {
        report.set("unaligned", true);
    }
    report.set("rate", workload.rate);
    report.set("verify", workload.verify);
    report.set("seed", workload.seed);
    report.set("version", env!("CARGO_PKG_VERSION"));
}
