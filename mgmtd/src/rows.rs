//! The manager's rows in the key-value store: every key in one table, and the bytes of every value.
//!
//! A key is the format version (1 byte), file-system id 0 (4 bytes; file systems count from 1, see `meta`), a letter
//! for the table, then what the table says. Integers in keys are big-endian, in values little-endian. A value begins
//! with the version of its encoding; strings and lists have a u32 length before them.
//!
//! | letter | after it | value | changes |
//! |---|---|---|---|
//! | `B` | | the primary's beat: u64 | several times a second |
//! | `C` | | generation, next numbers of nodes, targets, chains, clients | with every other change but `B` and `P` |
//! | `H` | chain: u64 | version, members (target, node, slice, state, leaving), the last serving set (targets) | when a member dies, comes back, is filled, moves |
//! | `L` | client: u64 | incarnation, name: its lease runs | when it comes and goes |
//! | `M` | address | incarnation of the metadata server there | when it comes and is forgotten |
//! | `N` | node: u32 | incarnation, domain, addresses, slices (store, shard, capacity, disk, standing) | when it starts |
//! | `O` | | whether moving is paused, and whether shares are evened out; absent: neither | when people say so |
//! | `P` | | the primary: epoch, process, address, released | when the lead changes |
//! | `R` | | cluster uuid, formation | once; the formation until chains exist |
//! | `T` | table: u32, version: u32, page: u32 | up to [`TABLE_PAGE`] chains | once |

use crate::cluster::formation::Formation;
use crate::cluster::lease::Holder;
use crate::cluster::routing::EPOCH_MAX;
use crate::cluster::state::{Chain, Counters, Member, Meta, Moving, Node, Slice, Standing, State};
use crate::cluster::transition::Public;
use corefs_kv::{Isolation, KeyRange, Pair, Transaction};
use corefs_wire::control::mgmtd::{self, TargetState};
use corefs_wire::{ChainId, ClientId, Error, ErrorCode, NodeId, Result, SliceIndex, TargetId, Uuid};
use std::collections::BTreeMap;

/// Format version 1, file-system id 0: the cluster itself.
const PREFIX: [u8; 5] = [1, 0, 0, 0, 0];
/// Encoding of values. 1 had no disk and standing of slices, and no members that are to leave.
const VERSION: u8 = 2;
/// Chains in one row of a table: a row stays well below the store's 100 KB.
pub const TABLE_PAGE: usize = 4096;
/// Rows that are loaded at most: the bounds of formation, of nodes and of clients together are below it.
const ROWS_MAX: usize = 1 << 20;

/// The tables' letters.
mod letter {
    pub const BEAT: u8 = b'B';
    pub const COUNTERS: u8 = b'C';
    pub const CHAIN: u8 = b'H';
    pub const CLIENT: u8 = b'L';
    pub const META: u8 = b'M';
    pub const NODE: u8 = b'N';
    pub const MOVING: u8 = b'O';
    pub const HOLDER: u8 = b'P';
    pub const ROOT: u8 = b'R';
    pub const TABLE: u8 = b'T';
}

fn key(letter: u8, rest: &[u8]) -> Vec<u8> {
    [PREFIX.as_slice(), &[letter], rest].concat()
}

pub fn root_key() -> Vec<u8> {
    key(letter::ROOT, &[])
}

pub fn counters_key() -> Vec<u8> {
    key(letter::COUNTERS, &[])
}

pub fn holder_key() -> Vec<u8> {
    key(letter::HOLDER, &[])
}

pub fn beat_key() -> Vec<u8> {
    key(letter::BEAT, &[])
}

pub fn client_key(client: ClientId) -> Vec<u8> {
    key(letter::CLIENT, &client.0.to_be_bytes())
}

/// Where all rows of the cluster are.
pub fn all() -> KeyRange {
    KeyRange::prefix(&PREFIX)
}

/// Where the chain tables are: something is there once the cluster is formed.
pub fn tables() -> KeyRange {
    KeyRange::prefix(&key(letter::TABLE, &[]))
}

/// Builds a value.
struct Writer(Vec<u8>);

impl Writer {
    fn new() -> Self {
        Self(vec![VERSION])
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn text(self, text: &str) -> Self {
        self.u32(text.len() as u32).bytes(text.as_bytes())
    }

    fn list<T>(self, list: &[T], write: impl Fn(Self, &T) -> Self) -> Self {
        list.iter().fold(self.u32(list.len() as u32), write)
    }
}

/// Takes a value apart; every step may find it damaged.
struct Reader<'a> {
    rest: &'a [u8],
    what: &'a str,
    version: u8,
}

impl<'a> Reader<'a> {
    fn new(what: &'a str, value: &'a [u8]) -> Result<Self> {
        let mut out = Self { rest: value, what, version: 0 };
        out.version = out.u8()?;
        match out.version {
            1..=VERSION => Ok(out),
            other => {
                let text = format!("{what}: encoding version {other} is newer than this build");
                Err(Error::mismatch(ErrorCode::BadFormat, u64::from(VERSION), u64::from(other), text))
            }
        }
    }

    fn damaged(&self) -> Error {
        Error::new(ErrorCode::Corrupt, format!("the {} row in the key-value store is damaged", self.what))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or_else(|| self.damaged())?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.take()?))
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.take()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u32()? as usize;
        let (text, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.damaged())?;
        self.rest = rest;
        String::from_utf8(text.to_vec()).map_err(|_| self.damaged())
    }

    fn list<T>(&mut self, read: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        // No capacity by the length that is written there: it may be damaged.
        (0..self.u32()?).map(|_| read(self)).collect()
    }

    fn end<T>(self, value: T) -> Result<T> {
        if self.rest.is_empty() { Ok(value) } else { Err(self.damaged()) }
    }
}

pub fn write_root(cluster: Uuid, formation: Formation) -> Vec<u8> {
    let Formation { nodes, replicas, targets_per_node, chunk_size } = formation;
    Writer::new().bytes(&cluster.0).u32(nodes).u32(replicas).u32(targets_per_node).u32(chunk_size).0
}

pub fn read_root(value: &[u8]) -> Result<(Uuid, Formation)> {
    let mut row = Reader::new("root", value)?;
    let cluster = Uuid(row.take()?);
    let (nodes, replicas) = (row.u32()?, row.u32()?);
    let formation = Formation { nodes, replicas, targets_per_node: row.u32()?, chunk_size: row.u32()? };
    row.end((cluster, formation))
}

pub fn write_holder(holder: &Holder) -> Vec<u8> {
    let out = Writer::new().u64(holder.epoch).bytes(&holder.process.0).text(&holder.address);
    out.u8(u8::from(holder.released)).0
}

pub fn read_holder(value: &[u8]) -> Result<Holder> {
    let mut row = Reader::new("primary", value)?;
    let (epoch, process, address) = (row.u64()?, Uuid(row.take()?), row.text()?);
    let holder = Holder { epoch, process, address, released: row.u8()? != 0 };
    if epoch > EPOCH_MAX {
        return Err(row.damaged());
    }
    row.end(holder)
}

pub fn write_beat(beat: u64) -> Vec<u8> {
    Writer::new().u64(beat).0
}

pub fn read_beat(value: &[u8]) -> Result<u64> {
    let mut row = Reader::new("beat", value)?;
    let beat = row.u64()?;
    row.end(beat)
}

/// What the counters row holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Numbers {
    /// Rises by one with every change: what makes a repeated commit recognisable, and a late one fail.
    pub generation: u64,
    pub counters: Counters,
    /// The next client's number.
    pub client: u64,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { generation: 0, counters: Counters::default(), client: 1 }
    }
}

pub fn write_numbers(numbers: &Numbers) -> Vec<u8> {
    let Numbers { generation, counters, client } = numbers;
    Writer::new().u64(*generation).u32(counters.node).u64(counters.target).u64(counters.chain).u64(*client).0
}

pub fn read_numbers(value: &[u8]) -> Result<Numbers> {
    let mut row = Reader::new("counters", value)?;
    let (generation, node, target, chain) = (row.u64()?, row.u32()?, row.u64()?, row.u64()?);
    let numbers = Numbers { generation, counters: Counters { node, target, chain }, client: row.u64()? };
    row.end(numbers)
}

pub fn write_client(incarnation: u32, name: &str) -> Vec<u8> {
    Writer::new().u32(incarnation).text(name).0
}

fn write_node(node: &Node) -> Vec<u8> {
    let out = Writer::new().u64(node.incarnation).text(&node.domain).text(&node.control);
    let out = out.list(&node.shards, |out, shard| out.text(shard));
    let write = |out: Writer, slice: &Slice| {
        let out = out.bytes(&slice.store.0).u16(slice.shard).u64(slice.capacity);
        out.u16(slice.disk).u8(slice.standing.to_wire().0)
    };
    out.list(&node.slices, write).0
}

fn read_node(value: &[u8]) -> Result<Node> {
    let mut row = Reader::new("node", value)?;
    let (incarnation, domain, control) = (row.u64()?, row.text()?, row.text()?);
    let shards = row.list(Reader::text)?;
    let slices = row.list(|row| {
        let (store, shard, capacity) = (Uuid(row.take()?), row.u16()?, row.u64()?);
        let disk = if row.version > 1 { row.u16()? } else { 0 };
        let standing = match row.version {
            1 => Standing::Active,
            _ => Standing::from_wire(mgmtd::Standing(row.u8()?)).ok_or_else(|| row.damaged())?,
        };
        Ok(Slice { store, shard, capacity, disk, standing })
    })?;
    row.end(Node { incarnation, domain, control, shards, slices })
}

fn write_chain(chain: &Chain) -> Vec<u8> {
    let write = |out: Writer, member: &Member| {
        let out = out.u64(member.target.0).u32(member.node.0).u16(member.slice.0);
        out.u8(member.state.to_wire().0).u8(u8::from(member.leaving))
    };
    let last: Vec<TargetId> = chain.last_set.iter().copied().collect();
    let out = Writer::new().u64(chain.version).list(&chain.members, write);
    out.list(&last, |out, target| out.u64(target.0)).0
}

fn read_chain(value: &[u8]) -> Result<Chain> {
    let mut row = Reader::new("chain", value)?;
    let version = row.u64()?;
    let members = row.list(|row| {
        let (target, node, slice) = (TargetId(row.u64()?), NodeId(row.u32()?), SliceIndex(row.u16()?));
        let state = Public::from_wire(TargetState(row.u8()?)).ok_or_else(|| row.damaged())?;
        let leaving = row.version > 1 && row.u8()? != 0;
        Ok(Member { target, node, slice, state, leaving })
    })?;
    let last_set = row.list(|row| Ok(TargetId(row.u64()?)))?.into_iter().collect();
    row.end(Chain { version, members, last_set })
}

/// Every row of the cluster's state but the counters'.
pub fn of_state(state: &State) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut out = BTreeMap::from([(root_key(), write_root(state.cluster, state.formation))]);
    if state.moving != Moving::default() {
        let Moving { paused, balance } = state.moving;
        out.insert(key(letter::MOVING, &[]), Writer::new().u8(u8::from(paused)).u8(u8::from(balance)).0);
    }
    for (id, node) in &state.nodes {
        out.insert(key(letter::NODE, &id.0.to_be_bytes()), write_node(node));
    }
    for (id, chain) in &state.chains {
        out.insert(key(letter::CHAIN, &id.0.to_be_bytes()), write_chain(chain));
    }
    for (address, meta) in &state.metas {
        out.insert(key(letter::META, address.as_bytes()), Writer::new().u64(meta.incarnation).0);
    }
    for ((id, version), chains) in &state.tables {
        for (page, chains) in chains.chunks(TABLE_PAGE).enumerate() {
            let rest = [id.to_be_bytes(), version.to_be_bytes(), (page as u32).to_be_bytes()].concat();
            out.insert(
                key(letter::TABLE, &rest),
                Writer::new().list(chains, |out, chain| out.u64(chain.0)).0,
            );
        }
    }
    out
}

/// Everything that is stored, read in one snapshot. `None`: nothing is.
pub async fn load<T: Transaction>(txn: &mut T) -> Result<Option<(State, Numbers, Vec<ClientId>)>> {
    let pairs = txn.range_all(&all(), ROWS_MAX, Isolation::Snapshot).await?;
    if pairs.len() == ROWS_MAX {
        return Err(Error::new(ErrorCode::Corrupt, "more cluster rows than any cluster has"));
    }
    from_pairs(&pairs)
}

/// What the cluster's rows hold; `None` for a store without a cluster.
pub fn from_pairs(pairs: &[Pair]) -> Result<Option<(State, Numbers, Vec<ClientId>)>> {
    let mut state = State::new(Uuid::NIL, Formation::default());
    let mut numbers = Numbers::default();
    let mut clients = Vec::new();
    let mut rooted = false;
    let mut unsaid = Vec::new();
    for (key, value) in pairs {
        let Some((letter, rest)) = key.strip_prefix(&PREFIX).and_then(|rest| rest.split_first()) else {
            return Err(Error::new(ErrorCode::Corrupt, "a cluster row without a table"));
        };
        match *letter {
            letter::ROOT => {
                (state.cluster, state.formation) = read_root(value)?;
                rooted = true;
            }
            letter::COUNTERS => numbers = read_numbers(value)?,
            letter::NODE => {
                let id = NodeId(u32::from_be_bytes(id_of(rest)?));
                state.nodes.insert(id, read_node(value)?);
                unsaid.extend((value.first() == Some(&1)).then_some(id));
            }
            letter::CHAIN => {
                state.chains.insert(ChainId(u64::from_be_bytes(id_of(rest)?)), read_chain(value)?);
            }
            letter::CLIENT => clients.push(ClientId(u64::from_be_bytes(id_of(rest)?))),
            letter::META => {
                let mut row = Reader::new("metadata server", value)?;
                let incarnation = row.u64()?;
                let address = String::from_utf8(rest.to_vec()).map_err(|_| row.damaged())?;
                state.metas.insert(address, row.end(Meta { incarnation })?);
            }
            letter::TABLE => {
                let [a, b, c, d, e, f, g, h, ..] = id_of::<12>(rest)?;
                let name = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
                let mut row = Reader::new("chain table", value)?;
                let page = row.list(|row| Ok(ChainId(row.u64()?)))?;
                // Pages come in order: their number ends the key.
                state.tables.entry(name).or_default().extend(row.end(page)?);
            }
            letter::MOVING => {
                let mut row = Reader::new("moving", value)?;
                let moving = Moving { paused: row.u8()? != 0, balance: row.u8()? != 0 };
                state.moving = row.end(moving)?;
            }
            letter::HOLDER | letter::BEAT => {}
            other => {
                let text = format!("a cluster row of unknown kind {other}: stored by a newer version?");
                return Err(Error::new(ErrorCode::BadFormat, text));
            }
        }
    }
    state.counters = numbers.counters;
    if !rooted {
        return Ok(None);
    }
    // Before standings were stored, a node was in use if it had a target.
    unsaid.retain(|id| state.members().all(|(_, member)| member.node != *id));
    for (_, node) in state.nodes.iter_mut().filter(|(id, _)| unsaid.contains(id)) {
        node.slices.iter_mut().for_each(|slice| slice.standing = Standing::Spare);
    }
    state.check()?;
    Ok(Some((state, numbers, clients)))
}

fn id_of<const N: usize>(rest: &[u8]) -> Result<[u8; N]> {
    rest.try_into().map_err(|_| Error::new(ErrorCode::Corrupt, "a cluster row with a key of wrong length"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::state::Arrival;
    use crate::cluster::state::tests::{formed, node};

    fn pairs(state: &State) -> Vec<Pair> {
        let numbers = Numbers { generation: 9, counters: state.counters, client: 4 };
        let mut rows = of_state(state);
        rows.insert(counters_key(), write_numbers(&numbers));
        rows.insert(client_key(ClientId(3)), write_client(1, "somebody"));
        rows.insert(beat_key(), write_beat(12));
        rows.into_iter().collect()
    }

    #[test]
    fn what_is_stored_is_what_is_loaded() {
        let mut state = formed(7, 3);
        state.metas.insert("10.0.0.1:5".into(), Meta { incarnation: 77 });
        let (read, numbers, clients) = from_pairs(&pairs(&state)).unwrap().unwrap();
        assert_eq!(read, state);
        assert_eq!((numbers.generation, numbers.client, clients), (9, 4, vec![ClientId(3)]));
        assert_eq!(from_pairs(&[]), Ok(None));
    }

    /// As the first version wrote them.
    #[test]
    fn rows_without_standings_are_read() {
        let mut state = formed(2, 2);
        state.register(Arrival { id: None, node: node(3, 1, 2) }).unwrap();
        let mut rows = pairs(&state);
        for (key, value) in &mut rows {
            match key[5] {
                letter::NODE => {
                    let count = if key.ends_with(&3u32.to_be_bytes()) { 2 } else { 8 };
                    for slice in (1..=count).rev() {
                        // The disk and the standing.
                        let end = value.len() - (count - slice) * 26;
                        value.drain(end - 3..end);
                    }
                }
                // Two members of 16 bytes behind the encoding, the version and their count.
                letter::CHAIN => {
                    for end in [13 + 32, 13 + 16] {
                        value.remove(end - 1);
                    }
                }
                _ => {}
            }
            value[0] = 1;
        }
        assert_eq!(from_pairs(&rows).unwrap().unwrap().0, state);
    }

    #[test]
    fn long_tables_are_stored_in_pages() {
        let mut state = formed(1, 1);
        let chain = *state.chains.keys().next().unwrap();
        state.tables.insert((1, 1), vec![chain; 2 * TABLE_PAGE + 5]);
        let rows = of_state(&state);
        assert!(rows.values().all(|row| row.len() < corefs_wire::limits::KV_VALUE_MAX));
        assert_eq!(from_pairs(&pairs(&state)).unwrap().unwrap().0, state);
    }

    #[test]
    fn holders_survive() {
        let holder = Holder { epoch: 4, process: Uuid([3; 16]), address: "[::1]:9".into(), released: true };
        assert_eq!(read_holder(&write_holder(&holder)), Ok(holder));
    }

    /// Any damage to any row gives a typed error or, where it hits a plain number, another state: never a panic.
    #[test]
    fn damaged_rows_are_typed_errors() {
        let state = formed(2, 2);
        let pairs = pairs(&state);
        for (at, (_, value)) in pairs.iter().enumerate().take(8).chain(pairs.iter().enumerate().rev().take(4))
        {
            for cut in 0..value.len() {
                let mut damaged = pairs.clone();
                damaged[at].1.truncate(cut);
                // A beat and a client's row aren't looked into when loading.
                let looked = !matches!(damaged[at].0[5], letter::BEAT | letter::CLIENT);
                assert_eq!(from_pairs(&damaged).is_err(), looked, "row {at} cut at {cut}");
                let mut flipped = pairs.clone();
                flipped[at].1[cut] ^= 0xFF;
                let _outcome = from_pairs(&flipped);
            }
        }
        let newer = vec![(root_key(), vec![VERSION + 1])];
        assert_eq!(from_pairs(&newer).map(drop).unwrap_err().code, ErrorCode::BadFormat);
        let unknown = vec![(key(b'Z', &[]), vec![1])];
        assert_eq!(from_pairs(&unknown).map(drop).unwrap_err().code, ErrorCode::BadFormat);
    }
}
