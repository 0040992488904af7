//! `corefs perf compare`: several measurements in turns, again and again, so that what a shared machine does to one it does to
//! all. A figure is the median of the rounds, a ratio is the median of each round's own ratio, and the spread is printed.
//!
//! What is compared is of one age: both files are written in this run and read at places that no round before has read. A
//! hypervisor keeps what was written or read lately: on one virtual disk the very same random reads gave 55,000 a second of a
//! file just written, and 16,000 of one an hour old.

use crate::args::{Access, CompareArgs, Contestant};
use crate::command::configure;
use crate::disk::{self, Ground, SIZE_DEFAULT};
use crate::driver::Live;
use crate::machine::Machine;
use crate::native::Native;
use crate::progress::Watch;
use crate::report::{DISK, Report, Rounds, Row, Tally};
use crate::workload::{Direction, Workload};
use crate::{fio, report};
use corefs_wire::{Error, ErrorCode, Result};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// One of those that are compared, and what its rounds gave.
struct Lane {
    contestant: Contestant,
    workload: Workload,
    sum: Tally,
    iops: Vec<f64>,
}

/// Measures each contestant once a round.
pub fn run(args: &CompareArgs, live: &Arc<Live>, watch: Watch) -> Result<Report> {
    let mut lanes = lanes(args)?;
    let on_disk = lanes.iter().any(|lane| lane.contestant.access().is_none());
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
    let raw = Workload { verify: false, ..lanes[0].workload.clone() };
    let place = args.load.ceiling.clone().unwrap_or_else(|| ".".into());
    let mut report = Report::new(Machine::look(Some(&place)));
    configure(&mut report, &lanes[0].workload);
    report.set("repeat", args.repeat);
    report.set("path", args.load.path.display().to_string());
    report.set("manager", args.load.manager.join(","));
    let ground = match on_disk {
        true => Some(Ground::find(&place, Some(raw.working_set), Direction::Read, raw.seed, live, watch)?),
        false => None,
    };
    let native = match on_corefs {
        true => {
            let poll = Duration::from_micros(args.load.busy_poll);
            Some(Native::connect(managers, args.load.secret()?, raw.cores, poll)?)
        }
        false => None,
    };
    let outcome = match &native {
        Some(native) => on_fresh_file(native, args, &raw, live, watch, |native| {
            rounds(args, &mut lanes, ground.as_ref(), Some(native), live, watch)
        }),
        None => rounds(args, &mut lanes, ground.as_ref(), None, live, watch),
    };
    let ended = native.map_or(Ok(()), Native::stop);
    outcome?;
    ended?;
    for lane in lanes.iter() {
        report.add(row(lane, &lanes));
    }
    agree(&mut report);
    Ok(report)
}

fn lanes(args: &CompareArgs) -> Result<Vec<Lane>> {
    if args.repeat == 0 || args.repeat > 1000 {
        let what = format!("--repeat {}: between 1 and 1000 rounds", args.repeat);
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    let size = args.load.run.size.map_or(SIZE_DEFAULT, |size| size.0);
    let lane = |contestant: &Contestant| {
        let access = contestant.access().unwrap_or(Access::Randread);
        let workload = args.load.workload(access, size)?;
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
    work: impl FnOnce(&Native) -> Result<()>,
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
        native.prepare(path, workload.working_set, workload.seed, live, watch).and_then(|()| work(native));
    let removed = native.remove(path);
    outcome?;
    removed
}

fn rounds(
    args: &CompareArgs,
    lanes: &mut [Lane],
    ground: Option<&Ground>,
    native: Option<&Native>,
    live: &Arc<Live>,
    watch: Watch,
) -> Result<()> {
    for round in 0..args.repeat {
        for lane in lanes.iter_mut() {
            if live.stopped() {
                return Err(Error::new(ErrorCode::Os, "interrupted"));
            }
            lane.workload.round = round;
            let (tally, iops) = once(lane, &args.load.path, ground, native, live, watch)?;
            lane.iops.push(iops);
            lane.sum.extend(tally);
        }
    }
    Ok(())
}

/// One round of one contestant: what was counted, and its operations a second.
fn once(
    lane: &Lane,
    path: &Path,
    ground: Option<&Ground>,
    native: Option<&Native>,
    live: &Arc<Live>,
    watch: Watch,
) -> Result<(Tally, f64)> {
    // The raw loop and fio have no rounds: they go elsewhere by another seed, since what they read is not verified.
    let seed = lane.workload.seed.wrapping_add(u64::from(lane.workload.round) << 32);
    let raw = Workload { seed, verify: false, ..lane.workload.clone() };
    let tally = match (lane.contestant, ground, native) {
        (Contestant::Disk, Some(ground), _) => disk::measure(ground.path(), &raw, live, watch)?,
        (Contestant::Fio, Some(ground), _) => return Ok((Tally::default(), fio::run(ground.path(), &raw)?)),
        (_, _, Some(native)) => native.run(path, &lane.workload, live, watch)?,
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
    let mut ratios = Vec::new();
    let disk = all.iter().find(|lane| lane.contestant == Contestant::Disk);
    let comparable = matches!(lane.contestant, Contestant::Randread | Contestant::Fio);
    if let Some(disk) = disk.filter(|_| comparable) {
        let each = lane.iops.iter().zip(&disk.iops).filter(|(_, disk)| **disk > 0.0);
        ratios = each.map(|(ours, disk)| ours / disk).collect();
    }
    row.ratio_to_disk = median(&ratios);
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
        for (line, what) in [("disk --repeat 0", "--repeat"), ("randread", "--manager")] {
            let error = run(&args(line), &live, Watch::Nothing).unwrap_err();
            assert!(error.code == ErrorCode::BadConfig && error.message.contains(what), "{error}");
        }
    }
}
