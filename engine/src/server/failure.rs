//! What becomes of the process when a shard fails: it ends.
//!
//! Heartbeats report every shard, so that a node without one of them loses its lease, and all its chains with it, for as long as the process
//! lives. Another one, which `corefs up` or the machine's supervisor starts, has all shards again.

use super::cores::{self, Core};
use super::membership::Membership;
use corefs_net::executor;
use futures_lite::future;
use std::rc::Rc;
use std::time::Duration;

/// How long the other shards have to finish and write everything down: a little longer than they wait for successors.
const LAST: Duration = Duration::from_secs(3);
/// What the process ends with.
const EXIT_CODE: i32 = 1;

/// Waits for a shard to fail, and ends the process then. Returns if all have ended as they were told.
///
/// From here and not by way of whoever started the node: that waits for people to stop it.
pub(super) async fn watch(cores: Rc<Vec<Core>>, membership: Rc<Membership>) {
    let Some((shard, error)) = cores::failure(&cores).await else { return };
    // No lease from now on: it is short, and what is left of it runs out while the others finish.
    membership.stop();
    tracing::error!(%shard, %error, "a shard has failed, and the whole node ends with it; start the node again");
    let late = async {
        executor::sleep(LAST).await;
        tracing::warn!("a shard doesn't finish; what is under way is taken up again at the next start");
    };
    let others = cores.iter().filter(|core| core.shard != shard);
    future::or(cores::drain(others), late).await;
    std::process::exit(EXIT_CODE);
}

#[cfg(test)]
mod tests {
    use super::super::home::{Home, Plan};
    use super::super::{Options, config, membership};
    use super::*;
    use corefs_net::{Identity, Node, Role};
    use corefs_wire::{NodeId, Uuid};
    use glommio::Placement;
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    /// Says to a process of this test that it is the node.
    const NODE: &str = "COREFS_TEST_NODE";
    const CLUSTER: Uuid = Uuid([3; 16]);

    /// The ring that was made last in this process is a file from now on, of which the kernel takes nothing.
    fn break_newest_ring() {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let is_ring = |fd: &std::fs::DirEntry| {
            std::fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:[io_uring]")
        };
        let rings = fds.filter(is_ring).map(|fd| fd.file_name().to_str().unwrap().parse::<i32>().unwrap());
        let null = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: a plain system call. The ring's memory stays mapped.
        assert!(unsafe { libc::dup2(null.as_raw_fd(), rings.max().unwrap()) } >= 0);
    }

    /// A node of two shards, of which one fails, or with neither of them failing is told to stop.
    async fn serve(dir: &std::path::Path, fails: bool) {
        let plan = Plan { disks: &[], capacity: 128 << 20, cores: 2 };
        let mut home = Home::open(dir, &plan).unwrap();
        home.join(NodeId(1), CLUSTER).unwrap();
        let disks = home.open_disks().unwrap();
        let identity =
            || Identity { role: Role::Storage, id: 1, incarnation: 1, cluster: CLUSTER, secret: None };
        let control = Node::start(config(identity())).unwrap();
        let options = Options { cores: 2, pool_bytes: 16 << 20, ..Options::new(dir, Vec::new()) };
        let reserved = cores::reserve(options.listen, options.cores).unwrap();
        let (cores, _) = cores::start(&options, &home, &identity(), disks, reserved).await.unwrap();
        let member = membership::Member {
            node: home.node(),
            incarnation: 1,
            domain: String::new(),
            control: String::new(),
            shards: Vec::new(),
            slices: Vec::new(),
            resync_rate: 1,
        };
        let cores = Rc::new(cores);
        let membership = Rc::new(Membership::new(control, Vec::new(), member, Rc::clone(&cores)));
        if fails {
            break_newest_ring();
            // It sleeps in its ring, and wakes for this.
            while cores::reports(&cores).await.is_ok() {}
        } else {
            cores::stop(&cores).await;
        }
        watch(cores, membership).await;
    }

    /// What a node that is another process ends with, and what it says.
    fn run(fails: &str) -> (Option<i32>, String) {
        let mut node = Command::new(std::env::current_exe().unwrap());
        node.args(["--exact", "--nocapture", "server::failure::tests::the_process_ends_when_a_shard_fails"]);
        let mut node = node.env(NODE, fails).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while node.try_wait().unwrap().is_none() {
            if Instant::now() > until {
                node.kill().unwrap();
                panic!("the process lives on without its shard");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = node.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    #[test]
    fn the_process_ends_when_a_shard_fails() {
        if let Some(fails) = std::env::var_os(NODE) {
            let dir = tempfile::tempdir().unwrap();
            let executor = executor::builder(Placement::Unbound).make().unwrap();
            executor.run(async { serve(&dir.path().join("node"), fails == "fails").await });
            println!("nothing has failed");
            std::process::exit(7);
        }
        if super::cores::present() < 2 {
            return eprintln!("SKIPPED: this machine has one core and the node needs two");
        }
        let (code, said) = run("fails");
        assert_eq!(code, Some(EXIT_CODE), "{said}");
        assert_eq!(run("is told to stop").0, Some(7), "the end of a node that is told to stop is no failure");
    }
}
