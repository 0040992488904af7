//! Reports out of thin air, for the tests of whatever shows them.

use super::{CpuPerOp, Report, Rounds, Tally};
use crate::histogram::Latencies;
use crate::live::Live;
use crate::machine::{Machine, Storage};
use crate::series::Recorder;
use std::time::{Duration, SystemTime};

fn machine() -> Machine {
    Machine {
        kernel: Some("6.1.0".into()),
        cpu: Some("Fast <9000>".into()),
        cores: Some(2),
        memory_bytes: Some(8 << 30),
        storage: Some(Storage {
            file_system: "ext4".into(),
            source: "/dev/vda".into(),
            ..Storage::default()
        }),
    }
}

fn configured() -> Report {
    let mut report = Report::new(machine());
    report.set("block", 4096);
    report.set("depth", 128);
    report.set("path", "/x & y");
    report
}

/// The disk and the native client in three rounds.
pub fn compared() -> Report {
    let mut report = configured();
    let tally = |each: &[(u64, u64)], iops: u64, verify_errors| {
        let mut latencies = Latencies::new();
        each.iter().for_each(|(us, count)| latencies.record_n(us * 1000, *count));
        let operations = latencies.count();
        assert_eq!(operations, iops * 3);
        let elapsed = Duration::from_secs(3);
        Tally { operations, bytes: operations * 4096, elapsed, latencies, verify_errors, ..Tally::default() }
    };
    let mut disk = tally(&[(2000, 150_000)], 50_000, None).into_row("disk");
    disk.extras.rounds = Some(Rounds { iops: vec![48_000.0, 50_000.0, 52_000.0], ratio_to_disk: Vec::new() });
    report.add(disk);
    let native = tally(&[(2000, 108_000), (2500, 27_000)], 45_000, Some(0));
    let mut native = native.into_row("native_randread");
    let rounds = Rounds { iops: vec![42_000.0, 45_000.0, 48_000.0], ratio_to_disk: vec![0.875, 0.9, 0.92] };
    native.extras.rounds = Some(rounds);
    native.cpu_us_per_op = CpuPerOp {
        client_user: Some(3.0),
        client_system: Some(2.0),
        server_user: Some(4.0),
        server_system: Some(8.0),
    };
    report.add(native);
    report
}

/// Two rows with a series each, the later with a stall.
pub fn timed() -> Report {
    let mut report = configured();
    let live = Live::default();
    let mut row = |mode: &str, began, length, seconds: &[(u64, u64)]| {
        let began = SystemTime::UNIX_EPOCH + Duration::from_secs(began);
        let mut recorder = Recorder::new(began, Some(Duration::from_secs(2)));
        for (at, count) in seconds {
            recorder.record(Duration::from_millis(*at), 2_000_000, *count, &live);
        }
        let elapsed = Duration::from_millis(length);
        let (series, latencies) = recorder.finish(elapsed);
        let operations = latencies.count();
        let tally =
            Tally { operations, bytes: operations * 4096, elapsed, latencies, series, ..Tally::default() };
        report.add(tally.into_row(mode));
    };
    row("disk", 1000, 1500, &[(10, 500), (1010, 250)]);
    row("native_randread", 1007, 2000, &[(10, 400)]);
    report
}
