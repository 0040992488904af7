use super::*;
use corefs_wire::InodeId;

const DISK: DiskIndex = DiskIndex(0);
const PEERS: [TargetId; 2] = [TargetId(2), TargetId(3)];

fn place() -> Place {
    Place { target: TargetId(1), chunk: ChunkId::new(InodeId(1), 0), pending: false }
}

fn job(blocks: Range<u32>) -> Job {
    Job::new(place(), blocks, 0, 0)
}

/// Asks, and is answered with blocks of which these are good.
fn ask(job: &mut Job, good: u128) -> Option<(u64, u32, u32)> {
    let (to, first, blocks) = job.next_fetch(0, DISK)?;
    let good = good & mask(first..first + blocks);
    job.fetched(first..first + blocks, good);
    if good != 0 {
        assert_eq!(job.phase, Phase::Mending { blocks: good });
        job.mended(0, good);
    }
    Some((to.0, first, blocks))
}

#[test]
fn runs_are_asked_for_together_and_what_one_peer_lacks_of_the_next() {
    let mut job = job(0..STEP);
    assert_eq!(job.checked(0, 0b1_0111_0000, &PEERS), Tally { damaged: 4, repaired: 0 });
    assert_eq!(ask(&mut job, 0b0101_0000), Some((2, 4, 3)));
    assert_eq!(ask(&mut job, 0), Some((2, 8, 1)));
    assert_eq!(ask(&mut job, !0), Some((3, 5, 1)));
    assert_eq!(ask(&mut job, !0), Some((3, 8, 1)));
    assert_eq!(ask(&mut job, !0), None);
    assert_eq!(job.phase, Phase::Written { disk: DISK }, "not repaired before it is flushed and read back");
    assert_eq!(job.checked(0, 0, &PEERS), Tally { damaged: 0, repaired: 4 });
    assert_eq!((job.phase, job.lost), (Phase::Over, 0));
}

#[test]
fn a_peer_whose_copy_is_damaged_too_is_asked_block_by_block() {
    let mut job = job(0..STEP);
    job.checked(0, 0b11, &PEERS);
    assert_eq!(job.next_fetch(0, DISK), Some((TargetId(2), 0, 2)));
    job.refused(0..2, true);
    assert_eq!(job.next_fetch(0, DISK), Some((TargetId(2), 0, 1)));
    job.refused(0..1, true);
    assert_eq!(ask(&mut job, !0), Some((2, 1, 1)));
    assert_eq!(job.next_fetch(0, DISK), Some((TargetId(3), 0, 1)));
    // Nobody there at all.
    job.refused(0..1, false);
    assert_eq!(job.next_fetch(0, DISK), None);
    assert_eq!(job.phase, Phase::Written { disk: DISK });
    assert_eq!(job.checked(0, 1, &PEERS), Tally::default(), "one is left: another round");
    assert_eq!(job.phase, Phase::Fetch);
}

#[test]
fn rounds_and_pauses_end() {
    let (mut job, mut now, mut rounds) = (job(0..STEP + 1), 0, 0);
    job.checked(now, 1, &PEERS);
    while job.phase == Phase::Fetch {
        assert_eq!(job.wants_pending(), rounds % 2 == 1, "what is committed first, then what is pending");
        rounds += 1;
        while job.next_fetch(now, DISK).is_some() {
            job.refused(0..1, false);
        }
        assert_eq!(job.phase, Phase::Check);
        assert!(job.due > now);
        now = job.due;
        job.checked(now, 1, &PEERS);
    }
    assert_eq!((rounds, job.lost, job.phase, job.at), (ROUNDS_MAX, 1, Phase::Check, STEP));
    assert!(now < 10_000_000_000, "an update waits so long for it at most");
    // Alone, it gives up at once; and what was lost before is no news.
    job.known = 1;
    assert_eq!(job.checked(now, 6, &[]), Tally { damaged: 1, repaired: 0 });
    assert_eq!((job.phase, job.lost), (Phase::Over, 3));
}

#[test]
fn what_is_said_twice_is_done_once() {
    let mut repairs = Repairs::default();
    let second = 1_000_000_000;
    assert_eq!(repairs.next_deadline(), None);
    assert_eq!(repairs.suspect(second, place(), 4..5, false), Hope::Repair);
    repairs.suspect(second, place(), 1..2, false);
    assert_eq!((repairs.waiting(), repairs.next_deadline()), (1, Some(0)));
    repairs.begin(second);
    assert_eq!((repairs.jobs[0].at, repairs.jobs[0].to), (1, 5));
    repairs.suspect(second, place(), 9..10, false);
    assert_eq!(repairs.waiting(), 1);
    repairs.jobs[0].lost = 2;
    repairs.end(second, 0, false, 1);
    assert_eq!((repairs.unrepaired(), repairs.waiting()), (2, 0));
    assert_eq!(repairs.next_deadline(), Some(LOOK), "it may be written anew");
    assert!(repairs.wants_look(LOOK) && !repairs.wants_look(LOOK - 1));
    repairs.looked(LOOK);
    assert!(!repairs.wants_look(LOOK));
    // For a while there is no hope; then the whole chunk is looked at.
    assert_eq!(repairs.suspect(2 * second, place(), 4..5, false), Hope::None);
    assert_eq!(repairs.waiting(), 0);
    assert_eq!(repairs.suspect(2 * LOST_FOR, place(), 4..5, false), Hope::Repair);
    repairs.begin(2 * LOST_FOR);
    assert_eq!((repairs.jobs[0].at, repairs.jobs[0].to), (0, u32::MAX));
    repairs.suspect(2 * LOST_FOR, place(), 9..10, false);
    repairs.end(2 * LOST_FOR, 0, false, 1);
    assert_eq!((repairs.unrepaired(), repairs.waiting()), (0, 1), "what was said meanwhile comes next");
    repairs.stop();
    assert_eq!(repairs.suspect(2 * LOST_FOR, place(), 4..5, false), Hope::Stopping);
    assert_eq!(repairs.waiting(), 0);
}

#[test]
fn everything_is_bounded() {
    let mut repairs = Repairs::default();
    let chunk = |index| Place { chunk: ChunkId::new(InodeId(1), index), ..place() };
    for index in 0..2 * QUEUE_MAX as u32 {
        repairs.suspect(0, chunk(index), 0..1, false);
    }
    assert_eq!((repairs.waiting(), repairs.has_room()), (QUEUE_MAX, false));
    repairs.begin(0);
    assert_eq!((repairs.jobs.len(), repairs.has_room()), (JOBS_MAX, true));
    assert_eq!(repairs.due(0), Some(0));
}

#[test]
fn a_flush_covers_what_was_written_before_it_began() {
    let mut repairs = Repairs::default();
    for index in 0..2 {
        repairs.suspect(0, Place { chunk: ChunkId::new(InodeId(1), index), ..place() }, 0..1, false);
    }
    repairs.begin(0);
    repairs.jobs[0].phase = Phase::Written { disk: DISK };
    assert!(repairs.owes_flush(DISK) && !repairs.owes_flush(DiskIndex(1)));
    repairs.flushing(DISK);
    repairs.jobs[1].phase = Phase::Written { disk: DISK };
    repairs.flushed(5, DISK);
    assert_eq!((repairs.jobs[0].phase, repairs.jobs[1].phase), (Phase::Check, Phase::Written { disk: DISK }));
    assert!(repairs.owes_flush(DISK));
}
