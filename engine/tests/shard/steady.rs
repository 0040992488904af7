//! What reads in the steady state must not do: ask for memory, wake other cores, enter the kernel each on its own.

use crate::harness::*;
use corefs_wire::data::ReadEntry;
use corefs_wire::limits::BLOCK;

const BATCH: u32 = 16;
const ROUNDS: u64 = 500;

#[test]
fn reads_ask_for_no_memory_and_share_their_system_calls() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), SMALL);
    with_client(&cluster, async |client| {
        let one = chunk(1, 0);
        client.write(HEAD, one, 0, &pattern(1, BATCH as usize * BLOCK)).await.unwrap();
        let block = BLOCK as u32;
        let entries: Vec<ReadEntry> =
            (0..BATCH).map(|at| client.entry(HEAD, one, at * block, block)).collect();
        let read = async || {
            for _ in 0..ROUNDS {
                for found in client.read_batch(HEAD, &entries).await {
                    found.unwrap();
                }
            }
        };
        let names = ["reads", "allocations", "cross_core_messages", "ring_enters"];
        let counters = || names.map(|name| cluster.counter(1, name));
        let since = |after: [u64; 4], before: [u64; 4]| -> [u64; 4] {
            std::array::from_fn(|at| after[at] - before[at])
        };
        // Tables and queues grow to what they need.
        read().await;
        // The counters' own reports ask for memory, and are messages: so much.
        let first = counters();
        let before = counters();
        let [_, reported, ..] = since(before, first);
        read().await;
        let [reads, allocations, messages, enters] = since(counters(), before);
        assert_eq!(reads, ROUNDS * u64::from(BATCH));
        let asked = allocations.saturating_sub(reported);
        // Less than one a batch. It is 2 to 8 in all, but was 137 once on a busy machine, and nobody knows yet why.
        assert!(asked < ROUNDS * 4 / 5, "{asked} allocations in {reads} reads");
        assert!(messages <= 2 * names.len() as u64, "{messages} messages");
        assert!(enters < reads / 2, "{enters} system calls for {reads} reads");
        // That the count counts: an update asks for memory.
        let before = cluster.counter(1, "allocations");
        client.write(HEAD, one, 0, &pattern(2, BLOCK)).await.unwrap();
        assert!(cluster.counter(1, "allocations") > before);
    });
}
