//! The one shape of every measurement: rows, what was asked for, on which machine. What wasn't measured is null, never 0.

use crate::cpu::CpuTime;
use crate::draw;
use crate::histogram::Latencies;
use crate::machine::Machine;
use crate::series::{Points, Series};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Everything that one command measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub rows: Vec<Row>,
    /// The settings of the run, by the names of their flags.
    pub config: serde_json::Map<String, serde_json::Value>,
    pub machine: Machine,
}

/// One measurement.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Row {
    /// What was measured: `disk`, `native_randread`, `mount_randread`, ...
    pub mode: String,
    /// Operations of one block each, a second.
    pub iops: Option<f64>,
    pub bytes_per_second: Option<f64>,
    /// Counted after the warm-up.
    pub operations: Option<u64>,
    /// Operations that failed or came up short; they are in no other figure.
    pub errors: Option<u64>,
    /// Blocks whose bytes weren't those that were written.
    pub verify_errors: Option<u64>,
    pub latency_us: LatencyUs,
    pub cpu_us_per_op: CpuPerOp,
    /// `iops` over that of the raw disk in the same report.
    pub ratio_to_disk: Option<f64>,
    #[serde(flatten)]
    pub extras: Extras,
    /// All latencies, in HdrHistogram's own encoding.
    #[serde(
        rename = "histogram",
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::histogram::encoded"
    )]
    pub latencies: Option<Latencies>,
    /// For the log of intervals; the JSON has their figures only.
    #[serde(skip)]
    pub series: Option<Series>,
}

/// Microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LatencyUs {
    pub p50: Option<f64>,
    pub p90: Option<f64>,
    pub p99: Option<f64>,
    pub p99_9: Option<f64>,
    pub max: Option<f64>,
    pub mean: Option<f64>,
}

/// Microseconds of CPU time for each operation.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct CpuPerOp {
    pub client_user: Option<f64>,
    pub client_system: Option<f64>,
    pub server_user: Option<f64>,
    pub server_system: Option<f64>,
}

/// What only some rows have; left out of the others.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Extras {
    /// Seconds that the figures are of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Operations a second that an open loop asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Of these, how many were due and never started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub never_started: Option<u64>,
    /// Latencies above what the histogram holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clamped: Option<u64>,
    /// Copied and compared files, and those that differed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mismatches: Option<u64>,
    /// The figures of each round, when there were several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounds: Option<Rounds>,
    /// What servers did for each operation: system calls, ring entries, messages between cores, allocations, ...
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub server_per_op: BTreeMap<String, f64>,
    /// Microseconds of CPU time of the servers for each operation on a name, by what they do: `metadata` (with the embedded store, where that
    /// is the same process), `store` (where it is another one), `storage`. `cpu_us_per_op` has their sum.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub server_cpu_us_per_op: BTreeMap<String, f64>,
    /// Resident memory of the same servers at the end (bytes).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub server_memory: BTreeMap<String, u64>,
    /// Where the mean latency went (microseconds), by the servers' clocks: waiting for memory, disk, the rest; of writes their time
    /// in servers with all successors, a flush in it, the rest. The rest is sockets, wake-ups, the client, and
    /// of a batch its slowest.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stages_us: BTreeMap<String, f64>,
    /// What the client's cores did for each operation, from the start of the run to its end: system calls of their rings, bytes copied, reads for which a second
    /// replica was asked, too, and those that it answered first, requests, doorbells and completions of RDMA, times that a sleeping core was to be woken.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub client_per_op: BTreeMap<String, f64>,
    /// How often a client's thread asked for memory, for each operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_allocations_per_op: Option<f64>,
    /// Connections to each shard that were open beside and asked for nothing, and what each took of the servers' memory (bytes).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_bytes_per_connection: Option<f64>,
    /// To other rows of a comparison, by their modes: `fio`, `bare`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ratios: BTreeMap<String, Ratio>,
    /// What fio got on the same file in the same minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fio_iops: Option<f64>,
    /// Whether the disk's figure is within 5% of fio's: if not, ratios to it mean nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_valid: Option<bool>,
    /// The first error of the run, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_error: Option<String>,
    /// Percent of reads in the mixed run whose reads, or writes, these are. CPU time is of an operation of either kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixed_reads: Option<u8>,
    /// What was done in each second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub series: Option<Points>,
}

/// What each round of a comparison gave; the row has the medians.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Rounds {
    pub iops: Vec<f64>,
    /// To the raw disk in the same round.
    pub ratio_to_disk: Vec<f64>,
}

/// Each round's own ratio to another row: the middle one and the extremes.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Ratio {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

/// What a run counted, before it becomes a row.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub operations: u64,
    pub bytes: u64,
    pub errors: u64,
    /// `None`: nothing was verified.
    pub verify_errors: Option<u64>,
    /// Operations of an open loop that were due and for which there was no time, not even long after its end: their waits are
    /// among the latencies.
    pub never_started: u64,
    pub elapsed: Duration,
    pub latencies: Latencies,
    pub client: Option<CpuTime>,
    pub server: Option<CpuTime>,
    /// The servers' time by what they do, where that was asked for, and their memory at the end (bytes).
    pub servers: BTreeMap<&'static str, CpuTime>,
    pub servers_memory: BTreeMap<&'static str, u64>,
    pub first_error: Option<String>,
    /// What the servers counted from the start of the run to its end, warm-up included.
    pub counted: BTreeMap<String, u64>,
    /// How often the threads that drove it asked for memory, and in how many operations.
    pub allocations: (u64, u64),
    /// What those threads' rings and connections counted meanwhile, under the names of the servers' counters.
    pub client_counted: BTreeMap<String, u64>,
    /// Idle connections to each shard, and what each took of the servers' memory (bytes).
    pub crowd: Option<(u64, f64)>,
    pub series: Series,
    /// The writes of a mixed run, whose reads the rest is; CPU time is of both.
    pub writes: Option<Box<Self>>,
}

/// Counters that are reported for each operation, and how the report calls them. Those of the same name are added: a system call is one that hands entries to
/// a core's ring or waits there, one that polls a drive's, and one that takes the event by which a completion queue woke its core.
const COSTS: [(&str, &str); 17] = [
    ("ring_enters", "system_calls"),
    ("drive_enters", "system_calls"),
    ("rdma_wakes", "system_calls"),
    ("ring_submissions", "ring_entries"),
    ("cross_core_messages", "cross_core_messages"),
    ("allocations", "allocations"),
    ("drive_commands", "drive_commands"),
    ("disk_writes", "disk_writes"),
    ("flushes", "flushes"),
    ("copied_bytes", "copied_bytes"),
    ("hedged_reads", "hedged_reads"),
    ("hedges_won", "hedges_won"),
    ("rdma_requests", "rdma_requests"),
    ("rdma_doorbells", "rdma_doorbells"),
    ("rdma_completions", "rdma_completions"),
    ("rdma_arms", "rdma_arms"),
    ("rdma_wakes", "rdma_wakes"),
];

impl Tally {
    /// Adds what another core counted in the same time.
    pub fn join(&mut self, other: Self) {
        self.add(other, Series::join);
    }

    /// Adds what the same run counted at another time.
    pub fn extend(&mut self, later: Self) {
        let elapsed = self.elapsed + later.elapsed;
        self.add(later, Series::extend);
        self.elapsed = elapsed;
    }

    fn add(&mut self, other: Self, series: fn(&mut Series, Series)) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.never_started += other.never_started;
        self.verify_errors = sum(self.verify_errors, other.verify_errors, |a, b| a + b);
        self.elapsed = self.elapsed.max(other.elapsed);
        self.latencies.merge(&other.latencies);
        self.client = sum(self.client, other.client, CpuTime::plus);
        self.server = sum(self.server, other.server, CpuTime::plus);
        for (kind, time) in other.servers {
            let sum = self.servers.entry(kind).or_default();
            *sum = sum.plus(time);
        }
        self.servers_memory.extend(other.servers_memory);
        self.first_error = self.first_error.take().or(other.first_error);
        for (name, count) in other.counted {
            *self.counted.entry(name).or_default() += count;
        }
        for (name, count) in other.client_counted {
            *self.client_counted.entry(name).or_default() += count;
        }
        self.allocations.0 += other.allocations.0;
        self.allocations.1 += other.allocations.1;
        series(&mut self.series, other.series);
        if let Some(theirs) = other.writes {
            self.writes.get_or_insert_default().add(*theirs, series);
        }
    }

    /// The servers' counters, for each of the operations that they counted.
    fn costs(&self) -> BTreeMap<String, f64> {
        let count = |name: &str| self.counted.get(name).map_or(0.0, |count| *count as f64);
        let operations = count("reads") + count("updates");
        if operations == 0.0 {
            return BTreeMap::new();
        }
        let mut costs = costs_of(&self.counted, operations);
        if count("update_bytes") > 0.0 {
            // Data, journal and checkpoints.
            costs.insert("write_amplification".into(), count("disk_write_bytes") / count("update_bytes"));
        }
        costs
    }

    /// Where the time of an operation went, if all were of one kind.
    fn stages(&self) -> BTreeMap<String, f64> {
        let count = |name: &str| self.counted.get(name).map_or(0.0, |count| *count as f64);
        let each = |name: &str, of: &str| count(name) / count(of) / 1000.0;
        let (reads, updates) = (count("reads") > 0.0, count("updates") > 0.0);
        let (mut stages, within) = match (reads, updates) {
            (true, false) => {
                let (wait, disk) = (each("read_wait_nanos", "reads"), each("read_disk_nanos", "reads"));
                (vec![("wait_for_memory", wait), ("disk", disk)], wait + disk)
            }
            (false, true) => {
                let server = each("update_nanos", "updates");
                (vec![("server", server), ("a_flush", each("flush_nanos", "flushes"))], server)
            }
            _ => return BTreeMap::new(),
        };
        stages.extend(self.latencies.mean_us().map(|mean| ("rest", (mean - within).max(0.0))));
        stages.retain(|(_, time)| time.is_finite());
        stages.into_iter().map(|(name, time)| (name.to_owned(), time)).collect()
    }

    /// The rows of a run: one, or the reads and the writes of a mixed one.
    pub fn into_rows(mut self, mode: &str, mixed_reads: Option<u8>) -> Vec<Row> {
        let Some(mut writes) = self.writes.take() else { return vec![self.into_row(mode)] };
        // Nobody can say which of the two took the time.
        let operations = self.operations + writes.operations;
        (writes.client, writes.server) = (self.client, self.server);
        let row = |tally: Self, name| {
            let cpu = CpuPerOp::of(tally.client, tally.server, operations);
            let mut row = Row { cpu_us_per_op: cpu, ..tally.into_row(format!("{mode}_{name}")) };
            row.extras.mixed_reads = mixed_reads;
            row
        };
        vec![row(self, "read"), row(*writes, "write")]
    }

    pub fn into_row(self, mode: impl Into<String>) -> Row {
        let seconds = self.elapsed.as_secs_f64();
        let each_second = |count: u64| (seconds > 0.0).then(|| count as f64 / seconds);
        let clamped = self.latencies.clamped();
        let (server_per_op, stages_us) = (self.costs(), self.stages());
        let (allocations, of) = self.allocations;
        let client_per_op = if of > 0 { costs_of(&self.client_counted, of as f64) } else { BTreeMap::new() };
        let crowd = self.crowd;
        let operations = self.operations as f64;
        let cpu = |(kind, time): (&&str, &CpuTime)| {
            ((*kind).to_owned(), (time.user_us + time.system_us) as f64 / operations)
        };
        let servers = self.servers.iter().filter(|_| operations > 0.0);
        Row {
            mode: mode.into(),
            iops: each_second(self.operations),
            bytes_per_second: each_second(self.bytes),
            operations: Some(self.operations),
            errors: Some(self.errors),
            verify_errors: self.verify_errors,
            latency_us: LatencyUs::of(&self.latencies),
            cpu_us_per_op: CpuPerOp::of(self.client, self.server, self.operations),
            ratio_to_disk: None,
            extras: Extras {
                seconds: Some(seconds),
                never_started: (self.never_started > 0).then_some(self.never_started),
                clamped: (clamped > 0).then_some(clamped),
                first_error: self.first_error,
                server_cpu_us_per_op: servers.map(cpu).collect(),
                server_memory: self.servers_memory.iter().map(|(kind, b)| ((*kind).into(), *b)).collect(),
                server_per_op,
                client_per_op,
                stages_us,
                connections: crowd.map(|(count, _)| count),
                server_bytes_per_connection: crowd.map(|(_, bytes)| bytes),
                client_allocations_per_op: (of > 0).then(|| allocations as f64 / of as f64),
                series: self.series.points(),
                ..Extras::default()
            },
            latencies: Some(self.latencies),
            series: self.series.began().is_some().then_some(self.series),
        }
    }
}

/// Counters for each of so many operations, as the report calls them. Those of RDMA only where something went by it.
fn costs_of(counted: &BTreeMap<String, u64>, operations: f64) -> BTreeMap<String, f64> {
    let by_rdma = counted.get("rdma_requests").is_some_and(|count| *count > 0);
    let known = COSTS.iter().filter(|(counter, _)| by_rdma || !counter.starts_with("rdma_"));
    let mut costs = BTreeMap::new();
    for (name, count) in known.filter_map(|(counter, name)| Some((*name, *counted.get(*counter)?))) {
        *costs.entry(name.to_owned()).or_default() += count as f64 / operations;
    }
    costs
}

fn sum<T>(one: Option<T>, other: Option<T>, add: impl Fn(T, T) -> T) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(add(one, other)),
        (one, other) => one.or(other),
    }
}

impl CpuPerOp {
    fn of(client: Option<CpuTime>, server: Option<CpuTime>, operations: u64) -> Self {
        let each = |time: u64| (operations > 0).then(|| time as f64 / operations as f64);
        Self {
            client_user: client.and_then(|cpu| each(cpu.user_us)),
            client_system: client.and_then(|cpu| each(cpu.system_us)),
            server_user: server.and_then(|cpu| each(cpu.user_us)),
            server_system: server.and_then(|cpu| each(cpu.system_us)),
        }
    }
}

impl LatencyUs {
    pub fn of(latencies: &Latencies) -> Self {
        Self {
            p50: latencies.quantile_us(0.5),
            p90: latencies.quantile_us(0.9),
            p99: latencies.quantile_us(0.99),
            p99_9: latencies.quantile_us(0.999),
            max: latencies.max_us(),
            mean: latencies.mean_us(),
        }
    }
}

/// The mode whose rows are the ceiling.
pub const DISK: &str = "disk";
/// The mode of fio's row in a comparison.
pub const FIO: &str = "fio";

impl Report {
    pub fn new(machine: Machine) -> Self {
        Self { rows: Vec::new(), config: serde_json::Map::new(), machine }
    }

    /// Notes a setting of the run.
    pub fn set(&mut self, name: &str, value: impl Into<serde_json::Value>) {
        self.config.insert(name.to_owned(), value.into());
    }

    /// Adds a row; a random read of the ceiling's block gets its ratio to the ceiling that was added before.
    pub fn add(&mut self, mut row: Row) {
        if row.mode.ends_with("randread")
            && let Some(disk) = self.rows.iter().rev().find(|row| row.mode == DISK)
            && let (Some(ours), Some(ceiling)) = (row.iops, disk.iops.filter(|iops| *iops > 0.0))
        {
            row.ratio_to_disk = Some(ours / ceiling);
        }
        self.rows.push(row);
    }

    /// Whether anything went wrong that must end in a failing exit code.
    pub fn failed(&self) -> bool {
        let bad = |count: Option<u64>| count.is_some_and(|count| count > 0);
        self.rows.iter().any(|row| bad(row.errors) || bad(row.verify_errors) || bad(row.extras.mismatches))
    }

    pub fn to_json(&self) -> String {
        // Only maps with string keys and finite numbers, which always can be written.
        serde_json::to_string_pretty(self)
            .unwrap_or_else(|error| unreachable!("a report is plain JSON: {error}"))
    }

    /// The table, then a histogram for each row that has latencies.
    pub fn to_text(&self, style: draw::Style) -> String {
        let mut text = draw::table(&self.rows);
        for row in &self.rows {
            if let Some(latencies) = row.latencies.as_ref().filter(|latencies| latencies.count() > 0) {
                text.push_str(&format!("\n{}: latency\n", row.mode));
                text.push_str(&draw::histogram(latencies, style));
            }
        }
        text
    }
}

#[cfg(test)]
pub(crate) mod sample;

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(operations: u64, seconds: u64) -> Tally {
        let mut latencies = Latencies::new();
        latencies.record_n(100_000, operations);
        Tally {
            operations,
            bytes: operations * 4096,
            elapsed: Duration::from_secs(seconds),
            latencies,
            ..Tally::default()
        }
    }

    fn report() -> Report {
        let mut report = Report::new(Machine::default());
        report.add(tally(1000, 2).into_row(DISK));
        let native = Tally {
            client: Some(CpuTime { user_us: 800, system_us: 1600 }),
            verify_errors: Some(0),
            ..tally(800, 2)
        };
        report.add(native.into_row("native_randread"));
        report.add(tally(100, 1).into_row("native_seqwrite"));
        report
    }

    #[test]
    fn the_json_has_the_promised_shape_and_null_for_what_was_not_measured() {
        let json: serde_json::Value = serde_json::from_str(&report().to_json()).unwrap();
        let (disk, native) = (&json["rows"][0], &json["rows"][1]);
        for field in [
            "mode",
            "iops",
            "bytes_per_second",
            "operations",
            "errors",
            "verify_errors",
            "latency_us",
            "cpu_us_per_op",
            "ratio_to_disk",
        ] {
            assert!(disk.get(field).is_some(), "{field} is missing");
        }
        for field in ["p50", "p90", "p99", "p99_9", "max", "mean"] {
            assert!(native["latency_us"][field].is_f64(), "{field}");
        }
        assert_eq!(native["iops"], 400.0);
        assert_eq!(native["ratio_to_disk"], 0.8);
        assert_eq!(native["cpu_us_per_op"]["client_user"], 1.0);
        assert_eq!(native["verify_errors"], 0);
        assert!(native["cpu_us_per_op"]["server_user"].is_null());
        assert!(disk["verify_errors"].is_null() && disk["ratio_to_disk"].is_null());
        assert!(disk.get("files").is_none() && disk.get("series").is_none());
        assert!(disk["histogram"].as_str().unwrap().starts_with("HIST"), "{}", disk["histogram"]);
        assert!(json["rows"][2]["ratio_to_disk"].is_null(), "a write has no ratio to random reads");
        assert!(json["config"].is_object() && json["machine"].is_object());
    }

    #[test]
    fn json_reads_back() {
        let mut report = report();
        report.rows[0].extras = Extras { fio_iops: Some(1.5), ratio_valid: Some(false), ..Extras::default() };
        let back: Report = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(back.rows[0].extras, report.rows[0].extras);
        assert_eq!(back.to_json(), report.to_json());
        assert_eq!(back.to_text(draw::Style::Ascii), report.to_text(draw::Style::Ascii));
        let broken = report.to_json().replace("HIST", "MIST");
        assert!(serde_json::from_str::<Report>(&broken).unwrap_err().to_string().contains("HdrHistogram"));
        // An earlier version wrote no histograms.
        let mut old = serde_json::to_value(&report).unwrap();
        old["rows"][0].as_object_mut().unwrap().remove("histogram");
        assert!(serde_json::from_value::<Report>(old).unwrap().rows[0].latencies.is_none());
    }

    #[test]
    fn a_mixed_run_has_a_row_for_each_kind_that_share_the_cpu_time() {
        let cpu = Some(CpuTime { user_us: 6000, system_us: 0 });
        let core = || Tally { writes: Some(Box::new(tally(100, 2))), ..tally(200, 2) };
        let mut all = core();
        all.join(core());
        all.client = cpu;
        let rows = all.into_rows("native_mixed", Some(67));
        let modes: Vec<&str> = rows.iter().map(|row| row.mode.as_str()).collect();
        assert_eq!(modes, ["native_mixed_read", "native_mixed_write"]);
        assert_eq!((rows[0].iops, rows[1].iops), (Some(200.0), Some(100.0)));
        for row in &rows {
            assert_eq!((row.cpu_us_per_op.client_user, row.extras.mixed_reads), (Some(10.0), Some(67)));
        }
        assert_eq!(tally(1, 1).into_rows("native_randread", None).len(), 1);
    }

    #[test]
    fn counts_are_told_for_each_operation_and_those_of_rdma_where_there_are_some() {
        let counted = |requests| {
            let each =
                [("reads", 100), ("ring_enters", 50), ("copied_bytes", 0), ("rdma_requests", requests)];
            each.map(|(name, count)| (name.to_owned(), count)).into()
        };
        let core = |requests| Tally {
            counted: counted(requests),
            client_counted: counted(2 * requests),
            allocations: (0, 200),
            ..tally(100, 1)
        };
        let extras = core(300).into_row("native_randread").extras;
        assert_eq!(extras.server_per_op["system_calls"], 0.5);
        assert_eq!(
            (extras.server_per_op["rdma_requests"], extras.client_per_op["rdma_requests"]),
            (3.0, 3.0)
        );
        assert_eq!(extras.client_per_op["copied_bytes"], 0.0);
        let extras = core(0).into_row("native_randread").extras;
        let both = [extras.server_per_op, extras.client_per_op];
        assert!(
            both.iter().all(|costs| costs.len() == 2 && !costs.contains_key("rdma_requests")),
            "{both:?}"
        );
        let mut joined = core(300);
        joined.join(core(300));
        assert_eq!(joined.into_row("x").extras.client_per_op["rdma_requests"], 3.0);
    }

    #[test]
    fn every_way_into_the_kernel_is_a_system_call() {
        let counted = |requests| {
            let each = [
                ("reads", 100),
                ("ring_enters", 50),
                ("drive_enters", 120),
                ("rdma_wakes", 30),
                ("rdma_requests", requests),
            ];
            each.map(|(name, count)| (name.to_owned(), count)).into()
        };
        let of = |requests| Tally { counted: counted(requests), ..tally(100, 1) }.into_row("native_randread");
        assert_eq!(of(1).extras.server_per_op["system_calls"], 2.0);
        assert_eq!(of(1).extras.server_per_op["rdma_wakes"], 0.3);
        assert_eq!(
            of(0).extras.server_per_op["system_calls"],
            1.7,
            "a node without RDMA was never woken by it"
        );
    }

    #[test]
    fn an_empty_run_has_no_figures() {
        let row = Tally::default().into_row("nothing");
        assert_eq!((row.iops, row.latency_us, row.operations), (None, LatencyUs::default(), Some(0)));
    }

    #[test]
    fn cores_join_and_rounds_extend() {
        let mut all = tally(10, 2);
        all.join(tally(20, 2));
        assert_eq!(all.clone().into_row("x").iops, Some(15.0));
        all.extend(tally(30, 2));
        assert_eq!((all.elapsed.as_secs(), all.operations, all.latencies.count()), (4, 60, 60));
    }

    #[test]
    fn failures_are_failures() {
        assert!(!report().failed());
        for spoil in [
            |row: &mut Row| row.errors = Some(1),
            |row: &mut Row| row.verify_errors = Some(1),
            |row: &mut Row| row.extras.mismatches = Some(1),
        ] {
            let mut report = report();
            spoil(&mut report.rows[1]);
            assert!(report.failed());
        }
    }
}
