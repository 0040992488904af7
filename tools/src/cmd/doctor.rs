//! `corefs doctor`: what this machine has for a storage node, what will be used, and what would make it better.

mod cluster;
mod memory;
mod rdma;

use crate::output;
use corefs_engine::disk::sysfs::Device;
use corefs_engine::disk::uring::try_ways;
use corefs_engine::disk::way::{Choice, Survey, Way};
use corefs_engine::server::home;
use corefs_engine::server::plan::{CorePlan, Nic};
use corefs_wire::{Error, ErrorCode, Result};
use serde_json::{Value, json};
use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Show by which way a storage node would reach its disks, which cores its shards would run on, and what RDMA there is; why, and what would be better.
///
/// Each way to a disk is tried with a read of its first block, as a node does when it starts. It only looks, and writes nothing, also
/// not to the disks of a node that runs. What a running node took stands in its log (--log info) and its counters (`corefs status
/// --counters`).
///
/// The ways, from the shortest: NVMe passthrough, polled (commands past the kernel's block layer, completions asked for instead of
/// waited for); block device, polled; plain (files, and all other block devices). `corefs storage --disk-way` asks for a certain one,
/// --first-core for certain cores. With "-" before it: why a shorter way isn't there, and what to do about that.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Block device or file; repeat for several [default: every NVMe drive of this machine].
    #[arg(long, value_name = "PATH")]
    disk: Vec<PathBuf>,
    /// Directory of a storage node: its disks.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Shards of the planned node, as of `corefs storage --cores`.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cores: usize,
    /// As of `corefs storage --first-core` [default: near the disks, and the NIC].
    #[arg(long, value_name = "N")]
    first_core: Option<usize>,
    /// As of `corefs storage --listen`: the planned node is reached by the NIC that has this address.
    #[arg(long, value_name = "IP")]
    listen: Option<IpAddr>,
    /// Show instead by what this machine would reach each storage shard of a running cluster, RDMA or TCP, and why: a connection is made to each. Address of a
    /// manager; repeat for several, or put commas between them.
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    manager: Vec<String>,
    /// File with that cluster's secret; needed for clusters that other machines can reach.
    #[arg(long, value_name = "FILE", env = "COREFS_SECRET_FILE")]
    secret_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A disk, and what was found out about it.
struct Examined {
    path: PathBuf,
    survey: Survey,
    /// Each way that there is, and whether it works.
    tried: Result<Vec<(Way, Result<()>)>>,
    device: Option<Device>,
}

impl Examined {
    fn new(path: PathBuf) -> Self {
        let (survey, device) = (Survey::of(&path), Device::of(&path));
        Self { tried: try_ways(&path), path, survey, device }
    }

    /// The one that a node would take.
    fn way(&self) -> Option<Way> {
        let tried = self.tried.as_ref().ok()?;
        tried.iter().find(|(_, worked)| worked.is_ok()).map(|(way, _)| *way)
    }

    /// Why no shorter way is taken, and what to do.
    fn obstacles(&self) -> Vec<String> {
        let mut obstacles = self.survey.obstacles(Choice::Auto);
        match &self.tried {
            Err(error) => obstacles.push(error.message.clone()),
            Ok(tried) => obstacles.extend(
                tried
                    .iter()
                    .filter_map(|(way, worked)| Some(format!("{way}: {}", worked.as_ref().err()?.message))),
            ),
        }
        obstacles
    }

    fn queues_of(&self, cpu: usize) -> Vec<u32> {
        let queues = self.device.iter().flat_map(Device::queues);
        queues.filter(|queue| queue.cpus.contains(&cpu)).map(|queue| queue.number).collect()
    }
}

pub fn run(args: Args) -> Result<ExitCode> {
    if !args.manager.is_empty() {
        return cluster::run(&args);
    }
    let mut paths = args.disk.clone();
    if let Some(dir) = &args.dir {
        paths.extend(home::disks_of(dir)?.into_iter().map(|disk| disk.path));
    }
    if paths.is_empty() && args.dir.is_none() {
        paths = drives();
    }
    if let Some(missing) = paths.iter().find(|path| !path.exists()) {
        let what = format!("{} isn't there; name a block device or a file", missing.display());
        return Err(Error::new(ErrorCode::InvalidArgument, what));
    }
    let plan = CorePlan::of(&paths, args.listen.and_then(Nic::of), args.first_core);
    let disks: Vec<Examined> = paths.into_iter().map(Examined::new).collect();
    if args.json {
        output::json(&told(&disks, &plan, args.cores))?;
    } else {
        tell(&disks, &plan, args.cores)?;
        rdma::tell(args.cores)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn told(disks: &[Examined], plan: &CorePlan, shards: usize) -> Value {
    let disk = |disk: &Examined| {
        let drive = disk.survey.passthrough.as_ref().ok();
        json!({
            "path": disk.path,
            "way": disk.way().map(|way| way.to_string()),
            "obstacles": disk.obstacles(),
            "numa": disk.device.as_ref().and_then(Device::numa),
            "generic_device": drive.map(|drive| drive.path()),
            "block": drive.map(|drive| drive.block()),
            "transfer_max": drive.map(|drive| drive.piece(u32::MAX)),
            "volatile_cache": drive.map(|drive| drive.has_volatile_cache()),
        })
    };
    let shard = |shard: usize| {
        let place = plan.place(shard);
        let queues = |disk: &Examined| Some(json!({"disk": disk.path, "queues": disk.queues_of(place?.cpu)}));
        let queues: Vec<Value> = disks.iter().filter_map(queues).collect();
        json!({
            "shard": shard,
            "core": place.map(|place| place.cpu),
            "numa": place.and_then(|place| place.numa),
            "hardware_queues": queues,
        })
    };
    json!({
        "disks": disks.iter().map(disk).collect::<Vec<_>>(),
        "shards": (0..shards).map(shard).collect::<Vec<_>>(),
        "nic": plan.nic.as_ref().map(|nic| json!({"interface": nic.name, "numa": nic.numa})),
        "huge_pages": memory::HugePages::of_this_machine().told(),
        "advice": advice(disks, plan, shards),
        "rdma": rdma::told(shards),
    })
}

fn tell(disks: &[Examined], plan: &CorePlan, shards: usize) -> Result<()> {
    if disks.is_empty() {
        output::line("no NVMe drive is here; --disk PATH looks at a file or at another block device")?;
    }
    for disk in disks {
        let way = disk.way().map_or("no way to it works".to_string(), |way| way.to_string());
        output::line(&format!("{}: {way}", disk.path.display()))?;
        if let Ok(drive) = &disk.survey.passthrough {
            let cache = match drive.has_volatile_cache() {
                true => "a volatile cache: lone updates are written through it, others flushed",
                false => "no volatile cache: a completed write is durable",
            };
            let transfer = output::size(drive.piece(u32::MAX).into());
            let device = drive.path().display();
            let what =
                format!("{device}, blocks of {} bytes, up to {transfer} a command, {cache}", drive.block());
            output::line(&format!("  {what}"))?;
        }
        if let Some(numa) = disk.device.as_ref().and_then(Device::numa) {
            output::line(&format!("  near NUMA node {numa}"))?;
        }
        for obstacle in disk.obstacles() {
            output::line(&format!("  - {obstacle}"))?;
        }
    }
    if let Some(nic) = &plan.nic {
        let numa = nic.numa.map_or("NUMA node not told".to_string(), |numa| format!("NUMA node {numa}"));
        output::line(&format!("NIC: {}, {numa}", nic.name))?;
    }
    for shard in 0..shards {
        output::line(&shard_line(disks, plan, shard))?;
    }
    output::line(&memory::HugePages::of_this_machine().to_string())?;
    for what in advice(disks, plan, shards) {
        output::line(&format!("- {what}"))?;
    }
    Ok(())
}

/// Where a shard goes, and which of the disks' queues are its core's.
fn shard_line(disks: &[Examined], plan: &CorePlan, shard: usize) -> String {
    let Some(place) = plan.place(shard) else { return format!("shard {shard}: any core") };
    let mut line = format!("shard {shard}: core {}", place.cpu);
    // A string takes everything.
    if let Some(numa) = place.numa {
        let _ = write!(line, " on NUMA node {numa}");
    }
    for disk in disks {
        let queues = disk.queues_of(place.cpu);
        if !queues.is_empty() {
            let queues: Vec<String> = queues.iter().map(u32::to_string).collect();
            let _ = write!(line, "; {}: hardware queue {}", disk.path.display(), queues.join(" and "));
        }
    }
    line
}

/// What would make the plan better.
fn advice(disks: &[Examined], plan: &CorePlan, shards: usize) -> Vec<String> {
    let mut advice = Vec::new();
    if shards > plan.places.len() {
        let (cores, few) = (plan.places.len(), "shards share cores: --cores");
        advice.push(format!("{few} {cores} is what this process may use"));
    }
    if plan.near.len() > 1 {
        let what = "the disks are near several NUMA nodes, and each shard serves slices of every disk: run a storage node for each \
                    NUMA node, with its disks and --first-core";
        advice.push(what.to_string());
    }
    let nic = plan.nic.as_ref().and_then(|nic| nic.numa);
    if let (Some(nic), [disks]) = (nic, plan.near.as_slice())
        && nic != *disks
    {
        advice.push(format!(
            "the disks are near NUMA node {disks} and the NIC near {nic}: shards run near the disks, and what they send crosses to the NIC; an address of a NIC near \
             the disks (--listen) spares that"
        ));
    }
    let cpus: Vec<usize> =
        (0..shards.min(plan.places.len())).filter_map(|at| Some(plan.place(at)?.cpu)).collect();
    for disk in disks {
        let queues = disk.device.iter().flat_map(Device::queues);
        let shared = queues.filter(|queue| queue.cpus.iter().filter(|cpu| cpus.contains(cpu)).count() > 1);
        let shared: Vec<String> = shared.map(|queue| queue.number.to_string()).collect();
        if !shared.is_empty() && disk.survey.polled.is_ok() {
            advice.push(format!(
                "{}: several shards share hardware queue {}: start the kernel with nvme.poll_queues=N, N the number of cores",
                disk.path.display(),
                shared.join(", ")
            ));
        }
    }
    advice
}

/// The NVMe namespaces of this machine.
fn drives() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut paths: Vec<PathBuf> =
        names.filter(|name| name.starts_with("nvme")).map(|name| Path::new("/dev").join(name)).collect();
    paths.retain(|path| path.exists());
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_reached_the_plain_way_from_the_cores_as_they_are_numbered() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![1; 8192]).unwrap();
        let examined = Examined::new(file.path().to_path_buf());
        assert_eq!(examined.way(), Some(Way::Plain));
        let plan =
            CorePlan::of(std::slice::from_ref(&examined.path), Nic::of(IpAddr::from([127, 0, 0, 1])), None);
        let told = told(&[examined], &plan, 2);
        assert_eq!((&told["disks"][0]["way"], &told["disks"][0]["block"]), (&json!("plain"), &Value::Null));
        assert_eq!(told["disks"][0]["obstacles"].as_array().unwrap().len(), 2);
        assert_eq!(told["nic"], json!({"interface": "lo", "numa": null}));
        let numbered = CorePlan::of(&[], None, Some(0));
        for shard in 0..2 {
            assert_eq!(told["shards"][shard]["core"], json!(numbered.place(shard).unwrap().cpu));
        }
    }

    #[test]
    fn a_nic_that_is_far_from_the_disks_is_said() {
        let nic = |numa| Some(Nic { name: "eth0".to_string(), numa: Some(numa) });
        let plan = |near: &[u32], numa| CorePlan { places: vec![], near: near.to_vec(), nic: nic(numa) };
        let said = |near: &[u32], numa| advice(&[], &plan(near, numa), 0).join("; ");
        assert!(said(&[0], 1).contains("near NUMA node 0 and the NIC near 1"));
        assert!(!said(&[1], 1).contains("NIC") && !said(&[], 1).contains("NIC"));
    }

    #[test]
    fn what_is_not_there_is_said() {
        let missing = Args { disk: vec!["/nonexistent".into()], cores: 1, ..Args::default() };
        assert_eq!(run(missing).unwrap_err().code, ErrorCode::InvalidArgument);
    }
}
