//! What a shard has done so far: plain numbers, read when somebody asks.

use corefs_net::ring::RingCounters;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
        pub struct Counters { $($(#[$doc])* pub $name: u64,)* }
        impl Counters {
            /// Every counter's name and value.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counters! {
    /// Turns of the loop.
    turns,
    /// Reads answered with data, and the blocks in them.
    reads,
    read_blocks,
    /// Nanoseconds, by the starts of turns: that reads waited for memory, and that the disk had those that were answered.
    read_wait_nanos,
    read_disk_nanos,
    /// Reads answered with an error.
    reads_refused,
    /// Stored blocks whose checksum did not match.
    corrupt_blocks,
    /// Disk reads that failed.
    disk_read_errors,
    /// Bytes that the scrub has read and compared.
    scrubbed_bytes,
    /// Updates answered with success, and the payload bytes that came in.
    updates,
    update_bytes,
    /// Nanoseconds from their arrival to their answers, successors' included.
    update_nanos,
    updates_refused,
    /// Payloads whose checksum did not match.
    corrupt_payloads,
    /// Updates sent on, and answers that came back.
    forwards,
    forward_answers,
    /// Asked whether this shard is there, by others that wait for it.
    pings,
    /// Bytes of chunks read to be given to a successor that is being filled.
    filled_bytes,
    /// Writes to disks, bytes of them, and flushes.
    disk_writes,
    disk_write_bytes,
    flushes,
    /// Nanoseconds that flushes took.
    flush_nanos,
    batches,
    /// Frames that made no sense.
    bad_frames,
    /// Requests that waited for memory.
    starved,
    slices_dead,
    /// Control messages from other cores. Data operations send none: this grows with time, not with load.
    cross_core_messages,
    connections_opened,
    connections_closed,
}

/// The ring's own figures under the same kind of names.
pub fn of_ring(ring: RingCounters) -> [(&'static str, u64); 4] {
    [
        ("ring_enters", ring.enters),
        ("ring_submissions", ring.submissions),
        ("ring_completions", ring.completions),
        ("ring_parks", ring.parks),
    ]
}
