//! The status of a cluster, put together of its pages.

use crate::ground::Ground;
use corefs_wire::control::mgmtd::{GetStatusT, StatusT};
use corefs_wire::{Error, ErrorCode, Result};

/// Asks for all pages. `BadFrame` if they go round in circles.
pub async fn whole(ground: &Ground) -> Result<StatusT> {
    gather(async |request| ground.manager(&request).await).await
}

async fn gather(ask: impl AsyncFn(GetStatusT) -> Result<StatusT>) -> Result<StatusT> {
    let mut whole = ask(GetStatusT::default()).await?;
    let mut from = (0, 0);
    loop {
        let next = (whole.next_part, whole.next_from);
        if next == (0, 0) {
            return Ok(whole);
        }
        if next <= from {
            let text = format!("pages of the status don't end: after {from:?} comes {next:?}");
            return Err(Error::new(ErrorCode::BadFrame, text));
        }
        from = next;
        let mut request = GetStatusT::default();
        (request.part, request.from) = next;
        let page = ask(request).await?;
        whole.problems.extend(page.problems);
        whole.metas.extend(page.metas);
        whole.nodes.extend(page.nodes);
        whole.targets.extend(page.targets);
        whole.fills.extend(page.fills);
        (whole.next_part, whole.next_from) = (page.next_part, page.next_from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::control::mgmtd::NodeStatusT;
    use futures_lite::future::block_on;

    fn page(nodes: &[u32], next: (u8, u64)) -> StatusT {
        let mut page = StatusT::default();
        for number in nodes {
            let mut node = NodeStatusT::default();
            node.node = *number;
            page.nodes.push(node);
        }
        (page.next_part, page.next_from) = next;
        page
    }

    #[test]
    fn pages_are_asked_for_until_the_last() {
        let ask = async |request: GetStatusT| {
            Ok(match (request.part, request.from) {
                (0, 0) => page(&[1, 2], (3, 4)),
                (3, 4) => page(&[4], (4, 1)),
                (4, 1) => page(&[], (0, 0)),
                other => panic!("{other:?}"),
            })
        };
        let whole = block_on(gather(ask)).unwrap();
        assert_eq!(whole.nodes.iter().map(|node| node.node).collect::<Vec<_>>(), [1, 2, 4]);
        assert_eq!((whole.next_part, whole.next_from), (0, 0));
    }

    #[test]
    fn a_manager_that_sends_in_circles_is_an_error() {
        for next in [(3, 4), (3, 3), (1, 9)] {
            let ask =
                async |request: GetStatusT| Ok(page(&[1], if request.part == 0 { (3, 4) } else { next }));
            assert_eq!(block_on(gather(ask)).unwrap_err().code, ErrorCode::BadFrame);
        }
    }
}
