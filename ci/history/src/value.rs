//! What a block holds: a value that tells its key and its number, and fills the block so that no byte can change unseen.

/// Bytes of a value: one block of the file system.
pub const BLOCK: usize = 4096;
/// How each value begins. Who damages blocks on a disk looks for this.
pub const MAGIC: [u8; 8] = *b"CFSvalue";

/// The bytes of value `id` of `key`.
pub fn block(key: u32, id: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&u64::from(key).to_le_bytes());
    out.extend_from_slice(&id.to_le_bytes());
    while out.len() < BLOCK {
        let word = mix(id ^ (u64::from(key) << 44) ^ ((out.len() as u64) << 20));
        out.extend_from_slice(&word.to_le_bytes());
    }
    out
}

/// The number of the value of `key` that these bytes are; else what is wrong with them.
pub fn id_of(key: u32, bytes: &[u8]) -> Result<u64, String> {
    if bytes.len() != BLOCK {
        return Err(format!("{} bytes", bytes.len()));
    }
    let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    if bytes[..8] != MAGIC {
        let zeros = bytes.iter().all(|byte| *byte == 0);
        return Err(if zeros { "only zeros".into() } else { "no value".into() });
    }
    if word(8) != u64::from(key) {
        return Err(format!("a value of key {}", word(8)));
    }
    let id = word(16);
    let right = block(key, id);
    match right.iter().zip(bytes).position(|(right, found)| right != found) {
        None => Ok(id),
        Some(at) => Err(format!("value {id}, but altered from byte {at} on")),
    }
}

/// The finalizer of splitmix64: each bit of the result depends on each bit of the argument.
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_tells_itself_and_every_change() {
        let whole = block(7, 99);
        assert_eq!(id_of(7, &whole), Ok(99));
        assert!(id_of(8, &whole).is_err() && id_of(7, &whole[..4095]).is_err());
        assert_eq!(id_of(7, &[0; BLOCK]), Err("only zeros".into()));
        for at in [0, 9, 17, 24, 2000, 4095] {
            let mut changed = whole.clone();
            changed[at] ^= 4;
            assert!(id_of(7, &changed).is_err(), "byte {at}");
        }
        let mut torn = whole;
        torn[2048..].copy_from_slice(&block(7, 98)[2048..]);
        assert_eq!(id_of(7, &torn), Err("value 99, but altered from byte 2048 on".into()));
    }
}
