//! `corefs perf compare`: several measurements in turns, again and again, so that what a shared machine does to one it does to
//! all. A figure is the median of the rounds, a ratio is the median of each round's own ratio, and the spread is printed.
//!
//! The raw disk and fio do what the first of corefs's contestants does. Writes of corefs are acknowledged when they are durable, so fio's
//! are too (O_DSYNC), and those of `durable`, which makes as many of them as there are replicas; and the cost of a flush in the same
//! minutes is a row of its own. The raw loop's aren't: it is the disk's bound.
//!
//! What is compared is of one age: both files are written in this run and read at places that no round before has read. A
//! hypervisor keeps what was written or read lately: on one virtual disk the very same random reads gave 55,000 a second of a
//! file just written, and 16,000 of one an hour old.

use crate::args::{Access, CompareArgs, Contestant};
use crate::command::configure;
use crate::disk::{self, Ground, SIZE_DEFAULT};
use crate::driver::Live;
use crate::machine::Machine;
use crate::names::posix;
use crate::native::Native;
use crate::progress::Watch;
use crate::report::{DISK, Ratio, Report, Rounds, Row, Tally};
use crate::workload::{Direction, Workload};
use crate::{bare, fio, report};
use corefs_wire::limits::SHARDS_MAX;
use corefs_wire::{Error, ErrorCode, Result};
use std::sync::Arc;
use std::time::Duration;

/// The row of a flush's cost.
const FLUSH: &str = "local_flush";

/// One of those that are compared, and what its rounds gave.
struct Lane {
    contestant: Contestant,
    workload: Workload,
    sum: Tally,
    iops: Vec<f64>,
}

/// What the contestants run on.
#[derive(Default)]
struct Sides {
    ground: Option<Ground>,
    wire: Option<bare::Server>,
    bare: Option<bare::Server>,
    native: Option<Native>,
}

/// Whether it needs the raw disk's file.
fn on_disk(contestant: Contestant) -> bool {
    matches!(contestant, Contestant::Disk | Contestant::Fio | Contestant::Durable | Contestant::Bare)
}

/// Measures each contestant once a round.
pub fn run(args: &CompareArgs, live: &Arc<Live>, watch: Watch) -> Result<Report> {
    let mut lanes = lanes(args)?;
    let on_disk = lanes.iter().any(|lane| on_disk(lane.contestant));
    let on_corefs = lanes.iter().any(|lane| lane.contestant.access().is_some());
    if lanes.iter().any(|lane| lane.contestant == Contestant::Fio) && !fio::installed() {
        let what = "fio isn't installed (Debian's package is called fio); leave it out, or install it";
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    let managers = args.load.managers()?;
    if on_corefs && managers.is_empty() {
        let what = "give --manager ADDRESS: `corefs up` prints it in its ready line";
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    let access = access(args);
    let raw =
        Workload { verify: false, rate: None, ..args.load.workload(access, lanes[0].workload.working_set)? };
    if access != Access::Randread
        && lanes.iter().any(|lane| matches!(lane.contestant, Contestant::Bare | Contestant::Wire))
    {
        let what = "wire and bare are bounds of random reads; leave them out, or name randread first";
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    if raw.direction != Direction::Write && lanes.iter().any(|lane| lane.contestant == Contestant::Durable) {
        let what = "durable is the bound of writes; leave it out, or name randwrite or seqwrite first";
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    let place = args.load.ceiling.clone().unwrap_or_else(|| ".".into());
    let mut report = Report::new(Machine::look(Some(&place)));
    configure(&mut report, &raw);
    report.set("verify", args.load.verify);
    report.set("repeat", args.repeat);
    if lanes.iter().any(|lane| lane.contestant == Contestant::Durable) {
        report.set("copies", args.copies);
    }
    report.set("path", args.load.path.display().to_string());
    report.set("manager", args.load.manager.join(","));
    let mut sides = Sides::default();
    if on_disk {
        sides.ground =
            Some(Ground::find(&place, Some(raw.working_set), raw.direction, raw.seed, live, watch)?);
    }
    if raw.direction == Direction::Write && place.is_dir() {
        let mut row = posix::flushes(&place)?.into_row(FLUSH);
        row.bytes_per_second = None;
        report.add(row);
    }
    let poll = Duration::from_micros(args.load.busy_poll);
    let servers =
        args.servers.map_or_else(|| core_affinity::get_core_ids().map_or(1, |ids| ids.len()), |n| n as usize);
    if !(1..=SHARDS_MAX).contains(&servers) {
        let what = format!("--servers {servers}: between 1 and {SHARDS_MAX}");
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    report.set("servers", servers);
    report.set("busy_poll", args.load.busy_poll);
    if lanes.iter().any(|lane| lane.contestant == Contestant::Wire) {
        sides.wire = Some(bare::Server::start(None, servers, poll)?);
    }
    if lanes.iter().any(|lane| lane.contestant == Contestant::Bare) {
        sides.bare = Some(bare::Server::start(sides.ground.as_ref().map(Ground::path), servers, poll)?);
    }
    if on_corefs {
        sides.native = Some(Native::connect(
            managers,
            args.load.secret()?,
            raw.cores,
            poll,
            args.load.transport()?,
            args.load.hedge,
        )?);
    }
    let outcome = match &sides.native {
        Some(native) => {
            on_fresh_file(native, args, &raw, live, watch, || rounds(args, &mut lanes, &sides, live, watch))
        }
        None => rounds(args, &mut lanes, &sides, live, watch),
    };
    let ended = sides.native.take().map_or(Ok(()), Native::stop);
    outcome?;
    ended?;
    for lane in lanes.iter() {
        report.add(row(lane, &lanes));
    }
    // What fio writes there is durable and what the disk's row writes isn't: they needn't agree.
    if !access.direction().writes() {
        agree(&mut report);
    }
    Ok(report)
}

fn lanes(args: &CompareArgs) -> Result<Vec<Lane>> {
    if args.repeat == 0 || args.repeat > 1000 {
        let what = format!("--repeat {}: between 1 and 1000 rounds", args.repeat);
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    if args.load.spread > 1 {
        let what = "--files: what is compared is in one file each; leave it out";
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    let size = args.load.run.size.map_or(SIZE_DEFAULT, |size| size.0);
    let lane = |contestant: &Contestant| {
        let access = contestant.access().unwrap_or(access(args));
        let workload = args.load.workload(access, size)?;
        if contestant.access().is_none() {
            disk::suits(&workload)?;
        }
        Ok(Lane { contestant: *contestant, workload, sum: Tally::default(), iops: Vec::new() })
    };
    args.contestants.iter().map(lane).collect()
}

/// Writes the file, lets `work` have it, and removes it.
fn on_fresh_file(
    native: &Native,
    args: &CompareArgs,
    workload: &Workload,
    live: &Arc<Live>,
    watch: Watch,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let path = &args.load.path;
    if native.length(path)?.is_some() {
        let what = format!(
            "{} is there already, of another age than the raw disk's file; remove it, or give another --path",
            path.display()
        );
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    let outcome =
        native.prepare(path, workload.working_set, workload.seed, live, watch).and_then(|()| work());
    let removed = native.remove(path);
    outcome?;
    removed
}

fn rounds(
    args: &CompareArgs,
    lanes: &mut [Lane],
    sides: &Sides,
    live: &Arc<Live>,
    watch: Watch,
) -> Result<()> {
    for round in 0..args.repeat {
        for lane in lanes.iter_mut() {
            if live.stopped() {
                return Err(Error::new(ErrorCode::Os, "interrupted"));
            }
            lane.workload.round = round;
            let (tally, iops) = once(lane, args, sides, live, watch)?;
            lane.iops.push(iops);
            lane.sum.extend(tally);
        }
    }
    Ok(())
}

/// One round of one contestant: what was counted, and its operations a second.
fn once(
    lane: &Lane,
    args: &CompareArgs,
    sides: &Sides,
    live: &Arc<Live>,
    watch: Watch,
) -> Result<(Tally, f64)> {
    // What is not corefs has no rounds: it goes elsewhere by another seed, since what it reads is not verified.
    let seed = lane.workload.seed.wrapping_add(u64::from(lane.workload.round) << 32);
    let raw = Workload { seed, verify: false, ..lane.workload.clone() };
    let poll = Duration::from_micros(args.load.busy_poll);
    let tally = match (lane.contestant, sides) {
        (Contestant::Disk, Sides { ground: Some(ground), .. }) => {
            disk::measure(ground.path(), &raw, None, live, watch)?
        }
        (Contestant::Durable, Sides { ground: Some(ground), .. }) => {
            disk::measure(ground.path(), &raw, Some(args.copies), live, watch)?
        }
        (Contestant::Fio, Sides { ground: Some(ground), .. }) => {
            return Ok((Tally::default(), fio::run(ground.path(), &raw, fio::Sync::Each)?));
        }
        (Contestant::Wire, Sides { wire: Some(server), .. }) => server.run(&raw, poll, live, watch)?,
        (Contestant::Bare, Sides { bare: Some(server), .. }) => server.run(&raw, poll, live, watch)?,
        (_, Sides { native: Some(native), .. }) => {
            native.run(&args.load.path, &lane.workload, live, watch)?
        }
        _ => return Err(ErrorCode::Internal.into()),
    };
    let seconds = tally.elapsed.as_secs_f64();
    let iops = if seconds > 0.0 { tally.operations as f64 / seconds } else { 0.0 };
    Ok((tally, iops))
}

fn row(lane: &Lane, all: &[Lane]) -> Row {
    let measured_here = lane.contestant != Contestant::Fio;
    let mut row = match measured_here {
        true => lane.sum.clone().into_row(lane.contestant.mode()),
        false => Row { mode: lane.contestant.mode().into(), ..Row::default() },
    };
    row.iops = median(&lane.iops);
    row.bytes_per_second = row.iops.map(|iops| iops * lane.workload.block as f64);
    // Figures of different accesses have no ratio.
    let same = |other: &Lane| {
        let (ours, theirs) = (&lane.workload, &other.workload);
        (ours.direction, ours.order, ours.block) == (theirs.direction, theirs.order, theirs.block)
    };
    let ratios_to = |other: Contestant| -> Vec<f64> {
        let other = all.iter().find(|lane| lane.contestant == other).filter(|other| same(other));
        let each = other.into_iter().flat_map(|other| lane.iops.iter().zip(&other.iops));
        each.filter(|(_, theirs)| **theirs > 0.0).map(|(ours, theirs)| ours / theirs).collect()
    };
    let ratios = match lane.contestant {
        Contestant::Disk | Contestant::Wire => Vec::new(),
        _ => ratios_to(Contestant::Disk),
    };
    row.ratio_to_disk = median(&ratios);
    if lane.contestant.access().is_some() {
        for bound in [Contestant::Fio, Contestant::Durable, Contestant::Bare, Contestant::Wire] {
            row.extras.ratios.extend(spread(&ratios_to(bound)).map(|ratio| (bound.mode().to_owned(), ratio)));
        }
    }
    row.extras.rounds = Some(Rounds { iops: lane.iops.clone(), ratio_to_disk: ratios });
    row
}

/// Notes at the disk's row whether fio confirms it.
fn agree(report: &mut Report) {
    let fio = report.rows.iter().find(|row| row.mode == report::FIO).and_then(|row| row.iops);
    if let Some(fio) = fio
        && let Some(disk) = report.rows.iter_mut().find(|row| row.mode == DISK)
    {
        disk.extras.fio_iops = Some(fio);
        disk.extras.ratio_valid = disk.iops.map(|ours| disk::agree(ours, fio));
    }
}

/// What the disk and fio do: as the first of corefs's own contestants.
fn access(args: &CompareArgs) -> Access {
    args.contestants.iter().find_map(|contestant| contestant.access()).unwrap_or(Access::Randread)
}

fn spread(values: &[f64]) -> Option<Ratio> {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    median(values).map(|median| Ratio { median, least, most })
}

/// The middle one; of an even number the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some((low + high) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Live;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: CompareArgs,
    }

    fn args(line: &str) -> CompareArgs {
        Cli::try_parse_from(std::iter::once("compare").chain(line.split(' '))).unwrap().args
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[9.0, 1.0, 5.0, 6.0]), Some(5.5));
    }

    #[test]
    fn a_ratio_is_of_one_round() {
        let lane = |contestant, iops: &[f64]| Lane {
            contestant,
            workload: Workload::layout(1 << 20, 1),
            sum: Tally::default(),
            iops: iops.to_vec(),
        };
        let all =
            [lane(Contestant::Disk, &[100.0, 10.0, 50.0]), lane(Contestant::Randread, &[80.0, 9.0, 45.0])];
        let row = row(&all[1], &all);
        assert_eq!((row.iops, row.ratio_to_disk), (Some(45.0), Some(0.9)));
        let rounds = row.extras.rounds.unwrap();
        assert_eq!(rounds.ratio_to_disk, [0.8, 0.9, 0.9]);
    }

    #[test]
    fn the_disk_alone_is_measured_each_round_and_nonsense_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let live = Arc::new(Live::default());
        let line = format!(
            "disk disk --repeat 3 --seconds 0.02 --runtime-warmup 0 --size 1MiB --ceiling {}",
            dir.path().display()
        );
        let report = run(&args(&line), &live, Watch::Nothing).unwrap();
        let rounds = report.rows[0].extras.rounds.clone().unwrap();
        assert_eq!((report.rows.len(), rounds.iops.len(), rounds.ratio_to_disk.len()), (2, 3, 0));
        for (line, what) in
            [("disk --repeat 0", "--repeat"), ("randread", "--manager"), ("disk --files 2", "--files")]
        {
            let error = run(&args(line), &live, Watch::Nothing).unwrap_err();
            assert!(error.code == ErrorCode::BadConfig && error.message.contains(what), "{error}");
        }
    }
}
