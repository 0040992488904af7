//! The layout of a new file.

use corefs_wire::layout::Layout;
use corefs_wire::limits::{CHUNK_MAX, CHUNK_MIN};
use corefs_wire::routing::RoutingInfo;
use corefs_wire::{ChainId, Error, ErrorCode, Result};

/// Chains that a file is spread over unless asked otherwise. Enough that one file read at full depth keeps tens of
/// cores busy (32 chunks of 512 KiB are 16 MiB: a larger file uses all of them); bounded because whoever truncates or
/// removes a file, or asks for its length, has to ask each of its chains.
pub const STRIPE_DEFAULT: u32 = 32;

/// Picks a layout from routing. `chunk_size` and `stripe` 0: the cluster's choice. `seed` decides which chains, so it must
/// be random: with equal seeds all first chunks would lie on one chain.
///
/// `InvalidArgument` for an impossible chunk size, `NotReady` while there are no chains.
pub fn pick(routing: &RoutingInfo, chunk_size: u32, stripe: u32, seed: u64) -> Result<Layout> {
    let chunk_size = if chunk_size == 0 { routing.chunk_size } else { chunk_size };
    if !chunk_size.is_power_of_two() || !(CHUNK_MIN..=CHUNK_MAX).contains(&chunk_size) {
        let what = format!("chunk sizes are powers of two from {CHUNK_MIN} to {CHUNK_MAX}");
        return Err(Error::mismatch(
            ErrorCode::InvalidArgument,
            routing.chunk_size.into(),
            chunk_size.into(),
            what,
        ));
    }
    let (&(table_id, table_version), chains) = newest_table(routing)
        .ok_or_else(|| Error::new(ErrorCode::NotReady, "there are no chains to put a file on yet"))?;
    let wanted = if stripe == 0 { STRIPE_DEFAULT } else { stripe };
    let stripe = wanted.min(u32::try_from(chains.len()).unwrap_or(u32::MAX));
    Ok(Layout { chunk_size, stripe, table_id, table_version, seed })
}

/// The newest version of the first table that has any chains.
fn newest_table(routing: &RoutingInfo) -> Option<(&(u32, u32), &Vec<ChainId>)> {
    let first = routing.tables.iter().find(|(_, chains)| !chains.is_empty())?.0.0;
    routing.tables.range((first, 0)..=(first, u32::MAX)).rfind(|(_, chains)| !chains.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routing(tables: &[((u32, u32), u64)]) -> RoutingInfo {
        let chains = |count: &u64| (0..*count).map(ChainId).collect();
        let tables = tables.iter().map(|(id, count)| (*id, chains(count))).collect();
        RoutingInfo { chunk_size: 1 << 20, tables, ..RoutingInfo::default() }
    }

    #[test]
    fn follows_the_newest_table() {
        let tables = [((1, 1), 4), ((1, 2), 100), ((1, 3), 0), ((2, 9), 7)];
        let layout = pick(&routing(&tables), 0, 0, 42).unwrap();
        let expected =
            Layout { chunk_size: 1 << 20, stripe: STRIPE_DEFAULT, table_id: 1, table_version: 2, seed: 42 };
        assert_eq!(layout, expected);
        assert_eq!(pick(&routing(&[((3, 1), 5)]), 65536, 0, 1).map(|layout| layout.stripe), Ok(5));
        assert_eq!(pick(&routing(&[((3, 1), 5)]), 65536, 2, 1).map(|layout| layout.stripe), Ok(2));
    }

    #[test]
    fn refuses_what_cannot_be() {
        let code = |routing, size| pick(&routing, size, 0, 1).unwrap_err().code;
        assert_eq!(code(routing(&[]), 0), ErrorCode::NotReady);
        assert_eq!(code(routing(&[((1, 1), 1)]), 65537), ErrorCode::InvalidArgument);
        assert_eq!(code(routing(&[((1, 1), 1)]), 4096), ErrorCode::InvalidArgument);
    }
}
