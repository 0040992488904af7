//! Little-endian encoding of records and pages. Decoding never panics: what is too short or nonsense is `None`.

use corefs_wire::{ChunkId, ClientId, InodeId, UpdateTag, Uuid};

/// Appends fields to a buffer.
pub(super) trait Put {
    fn u8(&mut self, value: u8);
    fn u16(&mut self, value: u16);
    fn u32(&mut self, value: u32);
    fn u64(&mut self, value: u64);
    fn u32s(&mut self, values: &[u32]);
    fn chunk_id(&mut self, id: ChunkId);
    fn tag(&mut self, tag: UpdateTag);
}

impl Put for Vec<u8> {
    fn u8(&mut self, value: u8) {
        self.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn u32s(&mut self, values: &[u32]) {
        values.iter().for_each(|value| self.u32(*value));
    }

    fn chunk_id(&mut self, id: ChunkId) {
        self.u64(id.inode.0);
        self.u32(id.index);
        self.u32(id.generation);
    }

    fn tag(&mut self, tag: UpdateTag) {
        self.u64(tag.client.0);
        self.u64(tag.sequence);
        self.u32(tag.incarnation);
        self.u32(tag.channel);
    }
}

/// Takes fields from the front of a slice.
#[derive(Clone, Debug)]
pub(super) struct Get<'a>(pub(super) &'a [u8]);

impl<'a> Get<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        Some(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn u32s(&mut self, count: u32) -> Option<Vec<u32>> {
        let bytes = self.bytes((count as usize).checked_mul(4)?)?;
        Some(bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }

    pub(super) fn uuid(&mut self) -> Option<Uuid> {
        Some(Uuid(self.array()?))
    }

    pub(super) fn chunk_id(&mut self) -> Option<ChunkId> {
        Some(ChunkId { inode: InodeId(self.u64()?), index: self.u32()?, generation: self.u32()? })
    }

    pub(super) fn tag(&mut self) -> Option<UpdateTag> {
        let (client, sequence) = (ClientId(self.u64()?), self.u64()?);
        Some(UpdateTag { client, sequence, incarnation: self.u32()?, channel: self.u32()? })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
