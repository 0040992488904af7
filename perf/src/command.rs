//! `corefs perf`: from flags to a report.

use crate::args::{Access, DiskArgs, Json, LoadArgs, MetaArgs, Verb};
use crate::disk::{self, Ground, SIZE_DEFAULT};
use crate::draw::Style;
use crate::driver::Live;
use crate::machine::Machine;
use crate::mounted::{self, Processes};
use crate::names::{self, Phase, native, posix};
use crate::native::Native;
use crate::progress::Watch;
use crate::report::Report;
use crate::workload::{Direction, Until, Workload};
use corefs_wire::{Error, ErrorCode, Result};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Measures what the flags say. `live` ends it early.
pub fn run(verb: &Verb, live: &Arc<Live>) -> Result<Report> {
    let watch = if verb.json() == Json::Stdout { Watch::Nothing } else { Watch::terminal() };
    match verb {
        Verb::Disk(args) => raw(args, live, watch),
        Verb::Randread(args) => load(args, Access::Randread, live, watch),
        Verb::Randwrite(args) => load(args, Access::Randwrite, live, watch),
        Verb::Seqread(args) => load(args, Access::Seqread, live, watch),
        Verb::Seqwrite(args) => load(args, Access::Seqwrite, live, watch),
        Verb::Meta(args) => meta(args, live),
    }
}

/// The report for people on standard output, or as JSON there; and as JSON to the file that was named.
pub fn present(report: &Report, json: Json<'_>) -> Result<String> {
    if let Json::File(path) = json {
        std::fs::write(path, report.to_json() + "\n")
            .map_err(|error| Error::from(error).of(path.display()))?;
    }
    Ok(if json == Json::Stdout {
        report.to_json()
    } else {
        report.to_text(Style::of_stdout()).trim_end().to_owned()
    })
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
    report.add(if args.against_fio {
        disk::measure_against_fio(ground.path(), &workload, live, watch)?
    } else {
        disk::row(&workload, disk::measure(ground.path(), &workload, live, watch)?)
    });
    Ok(report)
}

fn load(args: &LoadArgs, access: Access, live: &Arc<Live>, watch: Watch) -> Result<Report> {
    let workload = args.workload(access, args.run.size.map_or(SIZE_DEFAULT, |size| size.0))?;
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
    configure(&mut report, &workload);
    report.set("path", args.path.display().to_string());
    if let Some(path) = &args.ceiling {
        report.add(ceiling(path, &workload, live, watch)?);
    }
    let (mode, tally) = if managers.is_empty() {
        if workload.direction == Direction::Read || access == Access::Randwrite {
            mounted::prepare(&args.path, workload.working_set, workload.seed, live, watch)?;
        }
        ("mount", mounted::run(&args.path, &workload, &Processes::default(), live, watch)?)
    } else {
        report.set("manager", args.manager.join(","));
        let native =
            Native::connect(managers, secret, workload.cores, Duration::from_micros(args.busy_poll))?;
        let outcome = native_run(&native, args, access, &workload, live, watch);
        // The measurement's own error says more than that of an end that follows from it.
        let ended = native.stop();
        let tally = outcome?;
        ended?;
        ("native", tally)
    };
    let mut row = tally.into_row(format!("{mode}_{}", workload.name()));
    row.extras.rate = workload.rate;
    report.add(row);
    Ok(report)
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
    report.set("version", env!("CARGO_PKG_VERSION"));
    let places = [("mount", &args.mounted), ("local", &args.local)];
    let mut trees = Vec::new();
    for (mode, under) in places {
        if let Some(under) = under {
            trees.push((mode, posix::Tree::new(under, plan)?));
        }
    }
    let native = match args.managers()? {
        managers if managers.is_empty() => None,
        managers => {
            let native = Native::connect(managers, args.secret()?, args.cores, Duration::ZERO)?;
            let tree = native::Tree::new(&native, &args.path, plan)?;
            Some((native, tree))
        }
    };
    if let Some(under) = &args.local {
        let mut row = posix::flushes(under)?.into_row("local_flush");
        row.bytes_per_second = None;
        report.add(row);
    }
    for phase in Phase::ALL {
        if let Some((native, tree)) = &native {
            report.add(names::row("native", phase, tree.run(native, phase, live)?));
        }
        for (mode, tree) in &trees {
            report.add(names::row(mode, phase, tree.run(phase, live)?));
        }
    }
    if let Some((native, tree)) = native {
        let removed = tree.remove(&native);
        native.stop()?;
        removed?;
    }
    Ok(report)
}

fn native_run(
    native: &Native,
    args: &LoadArgs,
    access: Access,
    workload: &Workload,
    live: &Arc<Live>,
    watch: Watch,
) -> Result<crate::report::Tally> {
    if workload.direction == Direction::Read || access == Access::Randwrite {
        native.prepare(&args.path, workload.working_set, workload.seed, live, watch)?;
    }
    native.run(&args.path, workload, live, watch)
}

/// The raw disk at `path` with the same depth and block, in random reads.
fn ceiling(path: &Path, workload: &Workload, live: &Live, watch: Watch) -> Result<crate::report::Row> {
    let raw = Workload {
        direction: Direction::Read,
        order: crate::workload::Order::Random,
        rate: None,
        verify: false,
        ..workload.clone()
    };
    let ground = Ground::find(path, Some(raw.working_set), Direction::Read, raw.seed, live, watch)?;
    let tally = disk::measure(ground.path(), &raw, live, watch)?;
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
    report.set("rate", workload.rate);
    report.set("verify", workload.verify);
    report.set("seed", workload.seed);
    report.set("version", env!("CARGO_PKG_VERSION"));
}
