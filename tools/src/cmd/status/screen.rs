//! What people see of a cluster, however large and sick it is: at most as many lines as fit a screen. What is well is summed up, what
//! isn't is named as far as there is room.

use super::{cluster_name, space, whole};
use crate::{output, store};
use corefs_wire::control::mgmtd::{FillT, MetaStatusT, NodeStatusT, StatusT};

/// Lines at most.
#[cfg(test)]
const LINES_MAX: usize = 25;
/// So many nodes are shown one by one; of more, only the dead ones, and one line is for the rest.
const NODES_SHOWN: usize = 6;
const DEAD_SHOWN: usize = NODES_SHOWN - 2;
/// Each with what to do about it on a line of its own.
const PROBLEMS_SHOWN: usize = 4;
/// Addresses in a line.
const METAS_SHOWN: usize = 3;

pub fn screen(status: &StatusT) -> Vec<String> {
    let mut out = summary(status);
    out.extend(nodes(&status.nodes));
    out.extend(filling(status));
    out.extend(moving(status));
    out.extend(metas(&status.metas));
    out.extend(problems(status));
    out
}

fn summary(status: &StatusT) -> Vec<String> {
    let chains = &status.routing.chains;
    let (total, used) = space(&status.nodes);
    let embedded = || format!("{} (embedded: one copy)", status.kv);
    vec![
        format!("cluster   {}", cluster_name(status)),
        format!("manager   {}", status.primary),
        format!("metadata  {}", if store::is_fdb(&status.kv) { status.kv.clone() } else { embedded() }),
        format!(
            "chains    {} of {}, {} whole; {} replicas, chunks of {}",
            chains.len(),
            status.expected_nodes * status.targets_per_node / status.replicas.max(1),
            chains.iter().filter(|chain| whole(chain)).count(),
            status.replicas,
            output::size(status.chunk_size.into())
        ),
        format!("space     {} used of {}", output::size(used), output::size(total)),
        format!("clients   {}", status.clients),
    ]
}

/// A person sees who is missing, however many there are.
fn nodes(nodes: &[NodeStatusT]) -> Vec<String> {
    if nodes.len() <= NODES_SHOWN {
        return nodes.iter().map(node).collect();
    }
    let dead: Vec<&NodeStatusT> = nodes.iter().filter(|node| !node.alive).collect();
    if dead.is_empty() {
        return vec![format!("nodes     {} alive: corefs node ls", nodes.len())];
    }
    let mut out = vec![format!("nodes     {} of {} alive", nodes.len() - dead.len(), nodes.len())];
    out.extend(dead.iter().take(DEAD_SHOWN).map(|dead| node(dead)));
    let more = nodes.len() - out.len() + 1;
    out.push(format!("          … and {more} more: corefs node ls"));
    out
}

fn node(node: &NodeStatusT) -> String {
    let (total, used) = space(std::slice::from_ref(node));
    format!(
        "node {:<4} {}  {} shards, {} slices, {} of {} used, seen {} ms ago{}",
        node.node,
        if node.alive { "alive" } else { "DEAD " },
        node.shards.len(),
        node.slices.len(),
        output::size(used),
        output::size(total),
        node.seen_ms_ago,
        if node.domain.is_empty() { String::new() } else { format!(", domain {}", node.domain) },
    )
}

/// How far the filling of replicas has come, all of them together, and when the last of them is done.
fn filling(status: &StatusT) -> Option<String> {
    let sum = |of: fn(&FillT) -> u64| status.fills.iter().map(of).sum::<u64>();
    let left_ms = status.fills.iter().map(|fill| fill.left_ms).max()?;
    let time =
        if left_ms == 0 { String::new() } else { format!("; about {} s left", left_ms.div_ceil(1000)) };
    Some(format!(
        "filling   {} replicas: {} of {} chunks compared, {} sent ({}){time}",
        status.fills.len(),
        sum(|fill| fill.compared),
        sum(|fill| fill.to_compare),
        sum(|fill| fill.sent_chunks),
        output::size(sum(|fill| fill.sent_bytes))
    ))
}

fn moving(status: &StatusT) -> Option<String> {
    let leaving = status.targets.iter().filter(|target| target.leaving).count();
    let paused = if status.paused { ", paused" } else { "" };
    (leaving > 0 || status.balance)
        .then(|| format!("moving    {leaving} targets are on their way{paused}; see corefs moves"))
}

fn metas(metas: &[MetaStatusT]) -> Vec<String> {
    let few = |metas: &[&MetaStatusT]| {
        let shown: Vec<&str> = metas.iter().take(METAS_SHOWN).map(|meta| meta.address.as_str()).collect();
        let more = metas.len() - shown.len();
        let rest =
            if more == 0 { String::new() } else { format!(" … and {more} more: corefs status --json") };
        format!("{}{rest}", shown.join(", "))
    };
    let (alive, dead): (Vec<&MetaStatusT>, Vec<&MetaStatusT>) = metas.iter().partition(|meta| meta.alive);
    let mut out = Vec::new();
    if !alive.is_empty() {
        out.push(format!("meta      {} alive: {}", alive.len(), few(&alive)));
    }
    if !dead.is_empty() {
        out.push(format!("meta      {} DEAD: {}", dead.len(), few(&dead)));
    }
    out
}

fn problems(status: &StatusT) -> Vec<String> {
    let problems = status.problems.iter().take(PROBLEMS_SHOWN);
    let said =
        problems.flat_map(|one| [format!("PROBLEM   {}", one.what), format!("          do: {}", one.remedy)]);
    let mut out: Vec<String> = said.collect();
    if status.problems.len() > PROBLEMS_SHOWN {
        let more = status.problems.len() - PROBLEMS_SHOWN;
        out.push(format!("          … and {more} more problems: corefs status --json"));
    }
    if status.problems.is_empty() {
        out.push("all is well".into());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::control::mgmtd::{ProblemT, SliceInfoT, TargetStatusT};

    /// Every `nth` is dead; 0: none.
    fn cluster(nodes: u32, metas: u16, nth: u32) -> StatusT {
        let dead = |at: u32| at.is_multiple_of(nth);
        let mut status = StatusT::default();
        for at in 1..=nodes {
            let mut node = NodeStatusT::default();
            (node.node, node.alive, node.domain) = (at, !dead(at), format!("rack-{}", at % 8));
            let mut slice = SliceInfoT::default();
            (slice.capacity, slice.used) = (8 << 30, 1 << 30);
            node.slices = vec![slice; 16];
            status.nodes.push(node);
        }
        for at in 1..=metas {
            let mut meta = MetaStatusT::default();
            (meta.address, meta.alive) = (format!("10.0.0.{}:{at}", at % 250), !dead(at.into()));
            status.metas.push(meta);
        }
        status
    }

    fn sick(mut status: StatusT, problems: usize) -> StatusT {
        let mut problem = ProblemT::default();
        (problem.what, problem.remedy) = ("it is broken".into(), "mend it".into());
        status.problems = vec![problem; problems];
        let mut fill = FillT::default();
        (fill.compared, fill.to_compare, fill.left_ms) = (10, 100, 8200);
        status.fills = vec![fill; 100];
        let mut target = TargetStatusT::default();
        target.leaving = true;
        status.targets = vec![target; 100];
        status
    }

    #[test]
    fn the_largest_and_sickest_cluster_fits_a_screen() {
        for (nodes, metas, nth) in
            [(64, 256, 2), (64, 256, 1), (1000, 3, 3), (6, 256, 2), (7, 2, 7), (6, 3, 1)]
        {
            let out = screen(&sick(cluster(nodes, metas, nth), 70));
            let text = out.join("\n");
            assert!(text.lines().count() <= LINES_MAX, "{} lines:\n{text}", text.lines().count());
            assert!(text.contains("… and 66 more problems: corefs status --json"), "{text}");
            assert!(
                text.contains("about 9 s left") && text.contains("100 targets are on their way"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_not_shown_is_counted() {
        let text = screen(&sick(cluster(64, 256, 2), 9)).join("\n");
        for expected in [
            "32 of 64 alive",
            "node 8 ",
            "… and 60 more: corefs node ls",
            "128 alive: ",
            "128 DEAD: ",
            "… and 125 more",
        ] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
    }

    #[test]
    fn what_is_well_takes_few_lines() {
        let out = screen(&cluster(64, 256, 0));
        assert!(out.len() <= 10, "{}", out.join("\n"));
        assert_eq!(out.last().map(String::as_str), Some("all is well"));
        let small = screen(&cluster(3, 2, 0)).join("\n");
        assert!(small.contains("2 alive: 10.0.0.1:1, 10.0.0.2:2\n") && !small.contains('…'), "{small}");
    }
}
