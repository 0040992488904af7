//! RDMA as the suite makes it, and what only it has.

mod events;
mod grants;
mod nodes;
mod processes;
mod resting;
mod setup;
mod shared;
mod steady;
mod stopped;

use crate::world::{Setting, Tested};
use corefs_net::rdma::{Patience, Rdma, RdmaConfig};
use corefs_net::{Address, ConnId, Pool, TcpConfig};
use std::cell::Cell;

/// The devices that may be used.
fn devices() -> Vec<String> {
    let named = std::env::var("COREFS_TEST_RDMA").unwrap_or_default();
    named.split_whitespace().map(str::to_string).collect()
}

thread_local! {
    /// Transports that this thread has made: tests run one after the other, so that is all there is.
    static MADE: Cell<usize> = const { Cell::new(0) };
}

/// The devices that the next transport may use: all, or with COREFS_TEST_RDMA_APART one after the other, so that two of them talk from one device to another.
pub fn next_devices() -> Vec<String> {
    let all = devices();
    if std::env::var_os("COREFS_TEST_RDMA_APART").is_none() || all.is_empty() {
        return all;
    }
    vec![all[MADE.get() % all.len()].clone()]
}

/// Whether tests that want a device can run; says so if not.
pub fn is_there() -> bool {
    let there = !devices().is_empty();
    if !there {
        println!("skipped, because COREFS_TEST_RDMA names no device");
    }
    there
}

pub fn config(tcp: TcpConfig) -> RdmaConfig {
    RdmaConfig {
        devices: next_devices(),
        queue_pairs_max: 24,
        // With COREFS_TEST_RDMA_SHARED all connections share their receives.
        shared_from: if std::env::var_os("COREFS_TEST_RDMA_SHARED").is_some() { 0 } else { 16 },
        arena_bytes: 32 << 20,
        // The device may be emulated, on a machine that has other things to do: 2 s, seven times.
        patience: Patience { timeout: 19, retries: 7 },
        ..RdmaConfig::new(tcp)
    }
}

impl Tested for Rdma {
    const NAME: &'static str = "rdma";

    fn make(setting: &Setting, pool: &Pool) -> Self {
        let made = Self::new(config(setting.config()), pool).unwrap();
        MADE.set(MADE.get() + 1);
        assert!(made.roads().next().is_some(), "COREFS_TEST_RDMA names devices, but none can be used");
        made
    }

    fn local() -> Address {
        "127.0.0.1:0".parse().unwrap()
    }

    fn elsewhere() -> Vec<(String, String)> {
        // COREFS_TEST_FAR_RDMA: what such a process has where it runs, if that isn't here.
        let devices = std::env::var("COREFS_TEST_FAR_RDMA").unwrap_or_else(|_| {
            let next = next_devices();
            MADE.set(MADE.get() + 1);
            next.join(" ")
        });
        vec![("COREFS_TEST_RDMA".to_string(), devices)]
    }

    fn is_its_own(&self, conn: ConnId) -> bool {
        self.is_by_queue_pair(conn)
    }
}
