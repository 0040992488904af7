//! Pages of a status: of a thousand nodes it is larger than a frame.
//!
//! A page begins where the one before said, and takes what follows for as long as there is room: the routing table, problems, metadata
//! servers, nodes, targets, fills, in this order, each by its number. The manager remembers nothing in between, so that a page can be asked
//! of another one that leads by then.

use corefs_wire::control::Message;
use corefs_wire::control::mgmtd::{NodeStatusT, RoutingT, StatusT};
use corefs_wire::limits::FRAME_BODY_MAX;

/// A part of the status, and the number of the first thing of it that isn't told yet. `(0, 0)` is the beginning, and as what comes next
/// the end.
pub type Place = (u8, u64);

pub const BEGINNING: Place = (0, 0);

pub const PROBLEMS: u8 = 1;
const METAS: u8 = 2;
const NODES: u8 = 3;
const TARGETS: u8 = 4;
const FILLS: u8 = 5;

/// Bytes that a page is filled up to. Sizes are reckoned, and may be wrong by as much again. The routing table isn't cut, as nobody else can be told
/// of one that is larger than a frame either: it may exceed a page and is then alone.
const PAGE: usize = FRAME_BODY_MAX / 2;

// Bytes of things in a message: their fields, what leads to them, and what is lost to alignment.
const PROBLEM: usize = 48;
const META: usize = 64;
const NODE: usize = 128;
const SHARD: usize = 16;
const SLICE: usize = 112;
const TARGET: usize = 64;
const FILL: usize = 96;

/// Leaves of the whole status what is told from `from` on, in one page.
pub fn cut(mut status: StatusT, from: Place) -> StatusT {
    let mut page = Page { from, room: PAGE, empty: true, next: None };
    if from == BEGINNING {
        page.takes(status.routing.encode().len());
    } else {
        *status.routing = RoutingT::default();
    }
    // Targets are in the order of their chains.
    status.targets.sort_unstable_by_key(|target| target.target);
    let mut at = 0..;
    page.keep(PROBLEMS, &mut status.problems, |problem| {
        (at.next().unwrap_or(u64::MAX), PROBLEM + problem.what.len() + problem.remedy.len())
    });
    let mut at = 0..;
    page.keep(METAS, &mut status.metas, |meta| (at.next().unwrap_or(u64::MAX), META + meta.address.len()));
    page.keep(NODES, &mut status.nodes, |node| (node.node.into(), size(node)));
    page.keep(TARGETS, &mut status.targets, |target| (target.target, TARGET));
    page.keep(FILLS, &mut status.fills, |fill| (fill.chain, FILL));
    (status.next_part, status.next_from) = page.next.unwrap_or_default();
    status
}

fn size(node: &NodeStatusT) -> usize {
    let shards: usize = node.shards.iter().map(|shard| SHARD + shard.len()).sum();
    NODE + node.domain.len() + node.control.len() + shards + node.slices.len() * SLICE
}

struct Page {
    from: Place,
    room: usize,
    empty: bool,
    /// Where the first thing is that found no room.
    next: Option<Place>,
}

impl Page {
    fn takes(&mut self, bytes: usize) {
        self.room = self.room.saturating_sub(bytes);
        self.empty = false;
    }

    /// Leaves of `items`, whose numbers rise, those that are in this page. `of`: an item's number, and its bytes.
    fn keep<T>(&mut self, part: u8, items: &mut Vec<T>, mut of: impl FnMut(&T) -> (u64, usize)) {
        items.retain(|item| {
            let (number, bytes) = of(item);
            if (part, number) < self.from || self.next.is_some() {
                return false;
            }
            // One thing at least, or there would be no end.
            if bytes > self.room && !self.empty {
                self.next = Some((part, number));
                return false;
            }
            self.takes(bytes);
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::control::mgmtd::{FillT, MetaStatusT, ProblemT, SliceInfoT, TargetStatusT};

    /// A status of `nodes` nodes with so many slices and targets each.
    fn status(nodes: u32, slices: u16, targets: u64) -> StatusT {
        let mut out = StatusT::default();
        for number in 1..=nodes {
            let mut node = NodeStatusT::default();
            (node.node, node.domain, node.control) = (number, "rack-17".into(), "192.168.100.1:10000".into());
            node.shards = (0..64).map(|shard| format!("192.168.100.1:{}", 10_000 + shard)).collect();
            let slice = |index| {
                let mut slice = SliceInfoT::default();
                (slice.index, slice.store, slice.capacity) = (index, vec![7; 16], 1 << 40);
                (slice.used, slice.disk, slice.unrepaired) = (1 << 39, 3, 1);
                slice
            };
            node.slices = (0..slices).map(slice).collect();
            out.nodes.push(node);
        }
        // Downwards, as no order is promised.
        for number in (1..=u64::from(nodes) * targets).rev() {
            let (mut target, mut fill) = (TargetStatusT::default(), FillT::default());
            (target.target, target.used, target.chunks) = (number, 1 << 40, 1 << 20);
            out.targets.push(target);
            (fill.chain, fill.from, fill.to, fill.sent_bytes) = (1_000_000 - number, 1, 2, 1 << 40);
            fill.left_ms = number;
            out.fills.push(fill);
        }
        for number in 0..1000 {
            let (mut problem, mut meta) = (ProblemT::default(), MetaStatusT::default());
            problem.what =
                format!("{number} of those things are wrong that may be wrong with a cluster of this size");
            problem.remedy = "do this".into();
            meta.address = format!("192.168.200.1:{number}");
            out.problems.push(problem);
            out.metas.push(meta);
        }
        out.cluster = vec![1; 16];
        out.routing.version = 5;
        out.routing.metas = vec!["192.168.200.1:1".into(); 100];
        out
    }

    /// All pages, each of which went over the wire.
    fn pages(whole: &StatusT) -> Vec<StatusT> {
        let (mut out, mut from) = (Vec::new(), (0, 0));
        loop {
            let bytes = cut(whole.clone(), from).encode();
            assert!(bytes.len() < FRAME_BODY_MAX, "{} bytes", bytes.len());
            let page = StatusT::decode(&bytes).unwrap();
            let next = (page.next_part, page.next_from);
            out.push(page);
            if next == (0, 0) {
                return out;
            }
            assert!(next > from, "{next:?} after {from:?}");
            from = next;
        }
    }

    #[test]
    fn a_small_cluster_is_one_page() {
        let mut whole = status(3, 8, 10);
        whole.targets.sort_by_key(|target| target.target);
        assert_eq!(pages(&whole), [whole]);
    }

    /// A thousand nodes of 64 cores and 4 disks each.
    #[test]
    fn a_large_one_is_told_whole_each_thing_once() {
        let mut whole = status(1000, 256, 32);
        let pages = pages(&whole);
        assert!(pages.len() > 5, "{} pages", pages.len());
        let mut told = pages[0].clone();
        told.nodes.clear();
        told.targets.clear();
        told.fills.clear();
        told.problems.clear();
        told.metas.clear();
        for (number, page) in pages.iter().enumerate() {
            assert_eq!(page.routing.version, if number == 0 { 5 } else { 0 });
            assert_eq!(page.cluster, whole.cluster);
            told.nodes.extend(page.nodes.clone());
            told.targets.extend(page.targets.clone());
            told.fills.extend(page.fills.clone());
            told.problems.extend(page.problems.clone());
            told.metas.extend(page.metas.clone());
        }
        (told.next_part, told.next_from) = (0, 0);
        whole.targets.sort_by_key(|target| target.target);
        assert!(told == whole, "{} nodes, {} targets", told.nodes.len(), told.targets.len());
    }

    /// Whatever its size, one thing finds room; and a routing table beyond a page is alone in it.
    #[test]
    fn what_is_too_large_for_a_page_is_alone_in_one() {
        let mut whole = status(2, 30_000, 1);
        whole.routing.metas = vec!["192.168.200.1:1".into(); 150_000];
        let pages = pages(&whole);
        let nodes: Vec<usize> = pages.iter().map(|page| page.nodes.len()).collect();
        assert_eq!(nodes[0], 0);
        assert_eq!(nodes.iter().sum::<usize>(), 2);
        assert!(pages[0].problems.is_empty() && pages[1].problems.len() == 1000);
    }

    #[test]
    fn a_place_behind_everything_is_an_empty_last_page() {
        let page = cut(status(3, 8, 10), (9, 0));
        assert!(page.nodes.is_empty() && page.targets.is_empty() && page.fills.is_empty());
        assert_eq!((page.next_part, page.next_from), (0, 0));
    }
}
