//! Questions to a successor that is being filled, as bytes.

use crate::event::{Ask, Told};
use crate::store::{DedupRow, Entry};
use corefs_wire::data::{Prefix, op};
use corefs_wire::resync::{self, Compare, Compared, Row, Rows};
use corefs_wire::{ChainId, ErrorCode, Result, TargetId};
use zerocopy::IntoBytes;

/// The operation and the body of a question.
pub fn encode_ask(to: TargetId, chain: ChainId, chain_version: u64, ask: &Ask) -> (u16, Vec<u8>) {
    let mut body = Prefix::default().as_bytes().to_vec();
    let (chain, chain_version, target) = (chain.0.into(), chain_version.into(), to.0.into());
    match ask {
        Ask::Compare { from, last, digest } => {
            let (from, last, digest) = ((*from).into(), (*last).into(), (*digest).into());
            let compare = Compare { chain, chain_version, target, from, last, digest };
            body.extend_from_slice(compare.as_bytes());
            (op::COMPARE, body)
        }
        Ask::Rows { floor, rows, finish } => {
            let (floor, count) = ((*floor).into(), (rows.len() as u32).into());
            let finish = u32::from(*finish).into();
            let head = Rows { chain, chain_version, target, floor, count, finish };
            body.extend_from_slice(head.as_bytes());
            rows.iter().for_each(|row| body.extend_from_slice(row_of(row).as_bytes()));
            (op::ROWS, body)
        }
    }
}

fn row_of(row: &DedupRow) -> Row {
    let tag = row.tag;
    Row {
        client: tag.client.0.into(),
        sequence: tag.sequence.into(),
        incarnation: tag.incarnation.into(),
        channel: tag.channel.into(),
        key: row.chunk.into(),
        version: row.version.into(),
        length: row.length.into(),
        dropped: u32::from(row.dropped).into(),
    }
}

/// A question, from anybody: to which target of which chain at which version.
pub fn decode_ask(asked: u16, body: &[u8]) -> Result<(TargetId, ChainId, u64, Ask)> {
    if asked == op::COMPARE {
        let compare = Compare::parse(body)?;
        let (from, last, digest) = (compare.from.into(), compare.last.into(), compare.digest.get());
        let ask = Ask::Compare { from, last, digest };
        return Ok((compare.target(), compare.chain(), compare.chain_version.get(), ask));
    }
    let (head, rows) = resync::rows(body)?;
    let row = |row: &Row| DedupRow {
        tag: row.tag(),
        chunk: row.key.into(),
        version: row.version.get(),
        length: row.length.get(),
        dropped: row.dropped.get() != 0,
    };
    let (floor, finish) = (head.floor.get(), head.finish.get() != 0);
    let ask = Ask::Rows { floor, rows: rows.iter().map(row).collect(), finish };
    Ok((head.target(), head.chain(), head.chain_version.get(), ask))
}

/// The body of an answer.
pub fn encode_told(told: &Told) -> Vec<u8> {
    let Told::Differs { covered, entries, permit } = told else {
        return match told {
            Told::Equal => Compared { equal: 1.into(), ..Compared::default() }.as_bytes().to_vec(),
            _ => Vec::new(),
        };
    };
    let (covered, count) = ((*covered).into(), (entries.len() as u32).into());
    let mut body = Compared { covered, equal: 0.into(), count, permit: (*permit).into() }.as_bytes().to_vec();
    for entry in entries {
        let entry = resync::Entry {
            key: entry.chunk.into(),
            version: entry.version.into(),
            epoch: entry.epoch.into(),
            length: entry.length.into(),
            removed: u32::from(entry.removed).into(),
            digest: entry.digest.into(),
        };
        body.extend_from_slice(entry.as_bytes());
    }
    body
}

/// An answer, from anybody.
pub fn decode_told(asked: u16, body: &[u8]) -> Result<Told> {
    match asked {
        op::COMPARE => {
            let (head, entries) = resync::compared(body)?;
            if head.equal.get() != 0 {
                return Ok(Told::Equal);
            }
            let entry = |entry: &resync::Entry| Entry {
                chunk: entry.key.into(),
                version: entry.version.get(),
                epoch: entry.epoch.get(),
                length: entry.length.get(),
                mapped: 0,
                removed: entry.removed.get() != 0,
                digest: entry.digest.get(),
            };
            let entries = entries.iter().map(entry).collect();
            Ok(Told::Differs { covered: head.covered.into(), entries, permit: head.permit.get() })
        }
        op::ROWS if body.is_empty() => Ok(Told::Taken),
        _ => Err(ErrorCode::BadFrame.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::{ChunkId, ClientId, InodeId, UpdateTag};

    #[test]
    fn questions_and_answers_survive_the_wire() {
        let chunk = ChunkId::new(InodeId(4), 5);
        let entry =
            Entry { chunk, version: 6, epoch: 7, length: 8, mapped: 0, removed: true, digest: u64::MAX };
        for told in [Told::Equal, Told::Differs { covered: chunk, entries: vec![entry], permit: 9 }] {
            assert_eq!(decode_told(op::COMPARE, &encode_told(&told)), Ok(told));
        }
        assert_eq!(decode_told(op::ROWS, &encode_told(&Told::Taken)), Ok(Told::Taken));
        assert!(decode_told(op::COMPARE, &[]).is_err() && decode_told(op::ROWS, &[1]).is_err());
        let tag = UpdateTag { client: ClientId(1), sequence: 2, incarnation: 3, channel: 4 };
        let row = DedupRow { tag, chunk, version: 9, length: 10, dropped: true };
        for ask in [
            Ask::Rows { floor: 11, rows: vec![row], finish: true },
            Ask::Compare { from: chunk, last: ChunkId::MAX, digest: 5 },
        ] {
            let (op, body) = encode_ask(TargetId(1), ChainId(2), 3, &ask);
            assert_eq!(decode_ask(op, &body), Ok((TargetId(1), ChainId(2), 3, ask)));
            assert!(decode_ask(op, &body[1..]).is_err());
        }
    }
}
