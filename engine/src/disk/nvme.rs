//! NVMe namespaces: finding the generic device behind a block device, what its blocks are like, and the commands that it takes.
//!
//! Commands go to `/dev/ngXnY` in entries of the shard's own ring of drives (`IORING_OP_URING_CMD`), past the kernel's block layer. What that layer
//! does otherwise is done here: offsets in the namespace's own blocks, transfers cut to what the drive takes, flushes, errors.
//!
//! Sources: NVM Express Base Specification 2.0 (identify, status), NVM Command Set Specification 1.0 (read, write, flush),
//! `include/uapi/linux/nvme_ioctl.h`.

use super::Pages;
use super::sysfs;
use corefs_wire::limits::BLOCK;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use zerocopy::{Immutable, IntoBytes};

/// `NVME_URING_CMD_IO`: what an entry of a ring asks of the generic device.
pub const OPERATION: u32 = 0xC048_4E80;
const IOCTL_ID: libc::c_ulong = 0x4E40;
const IOCTL_ADMIN: libc::c_ulong = 0xC048_4E41;

const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
const IDENTIFY: u8 = 0x06;
/// Force unit access: complete only when it is on the medium (bit 30 of dword 12).
const FUA: u32 = 1 << 30;
/// Blocks of one command at most: their number less one has 16 bits.
const BLOCKS_MAX: u64 = 1 << 16;

/// `struct nvme_uring_cmd`, which is also `struct nvme_passthru_cmd`: the last word of that is the result.
#[derive(Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
struct Command {
    opcode: u8,
    flags: u8,
    reserved: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

const _: () = assert!(size_of::<Command>() == 72, "the kernel's layout");

impl Command {
    /// As an entry carries it.
    #[inline]
    fn entry(&self) -> [u8; 80] {
        let mut bytes = [0; 80];
        bytes[..size_of::<Self>()].copy_from_slice(self.as_bytes());
        bytes
    }
}

/// Which way bytes go, and how durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transfer {
    Read,
    Write,
    /// A write that is on the medium when it completes.
    WriteThrough,
}

/// A namespace that can be driven past the block layer, and its open generic device.
#[derive(Debug)]
pub struct Namespace {
    device: File,
    path: PathBuf,
    id: u32,
    /// Bytes of its blocks, as a power of two: 9 to 12.
    shift: u32,
    /// Bytes that one command moves at most: whole checksum blocks.
    transfer_max: u32,
    /// The drive has a cache that it loses with its power.
    volatile_cache: bool,
    /// The kernel has queues of it for polling.
    polled: bool,
}

impl Namespace {
    /// The namespace of which `path` is the block device. The error says why it can't be driven so, and what could be done about that.
    pub fn find(path: &Path) -> Result<Self, String> {
        let of = |what: &str, error: io::Error| format!("{what}: {error}");
        let block = sysfs::Device::of(path).ok_or("no block device")?;
        let numbers =
            block.name().strip_prefix("nvme").ok_or_else(|| format!("{} is no NVMe drive", block.name()))?;
        if block.is_partition() {
            return Err("a partition: commands of NVMe reach whole namespaces only".into());
        }
        let path = PathBuf::from(format!("/dev/ng{numbers}"));
        let device = OpenOptions::new().read(true).write(true).open(&path).map_err(|error| {
            let remedy = match error.raw_os_error() {
                Some(libc::EACCES | libc::EPERM) => "; run as root, or let this user read and write it",
                Some(libc::ENOENT) => "; the generic devices of NVMe come with Linux 5.13",
                _ => "",
            };
            format!("opening {}: {error}{remedy}", path.display())
        })?;
        let metadata = device.metadata().map_err(|error| of("looking at it", error))?;
        let named = sysfs::number(&format!("/sys/class/nvme-generic/ng{numbers}"));
        if !metadata.file_type().is_char_device() || named != Some(sysfs::split(metadata.rdev())) {
            return Err(format!("{} is not what the kernel calls so", path.display()));
        }
        // SAFETY: this request takes no argument, and tells the number of the namespace.
        let id = unsafe { libc::ioctl(device.as_raw_fd(), IOCTL_ID) };
        let id = u32::try_from(id).map_err(|_| of("asking for its number", io::Error::last_os_error()))?;
        let it = identify(&device, id, 0).map_err(|error| of("identifying the namespace", error))?;
        let shift = block_shift(it.bytes())?;
        let bytes = u64::from_le_bytes(array(it.bytes(), 0)) << shift;
        if block.bytes() != Some(bytes) {
            return Err(format!("{} has another size than {}", path.display(), block.name()));
        }
        let controller = identify(&device, 0, 1).map_err(|error| of("identifying the controller", error))?;
        let transfer_max = block.transfer_max().min((BLOCKS_MAX << shift).min(1 << 30) as u32);
        let (volatile_cache, polled) = (controller.bytes()[525] & 1 != 0, block.has_poll_queues());
        Ok(Self { device, path, id, shift, transfer_max, volatile_cache, polled })
    }

    pub fn fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }

    /// Of the generic device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn has_volatile_cache(&self) -> bool {
        self.volatile_cache
    }

    pub fn is_polled(&self) -> bool {
        self.polled
    }

    /// Bytes of a block of the drive.
    pub fn block(&self) -> u32 {
        1 << self.shift
    }

    /// Bytes of the next command for so many that are left.
    #[inline]
    pub fn piece(&self, left: u32) -> u32 {
        left.min(self.transfer_max)
    }

    /// The command that moves `len` bytes at `memory`; all of it whole checksum blocks, and no more than [`Self::piece`] says.
    #[inline]
    pub fn transfer(&self, what: Transfer, memory: *const u8, len: u32, offset: u64) -> [u8; 80] {
        debug_assert!(len > 0 && len <= self.transfer_max && offset.is_multiple_of(BLOCK as u64));
        let first = offset >> self.shift;
        let command = Command {
            opcode: if what == Transfer::Read { READ } else { WRITE },
            nsid: self.id,
            addr: memory as u64,
            data_len: len,
            cdw10: first as u32,
            cdw11: (first >> 32) as u32,
            cdw12: ((len >> self.shift) - 1) | if what == Transfer::WriteThrough { FUA } else { 0 },
            ..Command::default()
        };
        command.entry()
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// 4096 bytes about a namespace (`structure` 0) or its controller (1).
fn identify(device: &File, nsid: u32, structure: u32) -> io::Result<Pages> {
    let mut page = Pages::new(BLOCK);
    let mut command = Command {
        opcode: IDENTIFY,
        nsid,
        addr: page.bytes_mut().as_mut_ptr() as u64,
        data_len: BLOCK as u32,
        cdw10: structure,
        ..Command::default()
    };
    // SAFETY: the request reads the command and writes its result there, and writes 4096 bytes to the page, which is as large.
    match unsafe { libc::ioctl(device.as_raw_fd(), IOCTL_ADMIN, &raw mut command) } {
        0 => Ok(page),
        status if status > 0 => Err(io::Error::other(status_text(status as u16))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How large the blocks are, from what a namespace says of itself; refuses those that hold more than data.
fn block_shift(identified: &[u8]) -> Result<u32, String> {
    let chosen = identified[26];
    // Bits 5 and 6 are the upper ones of the format's number, where there are more than 16.
    let format =
        usize::from(chosen & 0xf) | if identified[25] > 15 { usize::from(chosen >> 5 & 3) << 4 } else { 0 };
    let format: [u8; 4] = array(identified, 128 + 4 * format);
    let metadata = u16::from_le_bytes([format[0], format[1]]);
    if metadata != 0 {
        return Err(format!(
            "its blocks carry {metadata} bytes of metadata: format it without any (nvme format)"
        ));
    }
    match u32::from(format[2]) {
        shift @ 9..=12 => Ok(shift),
        shift => Err(format!("its blocks have 2^{shift} bytes, and 512 to 4096 can be used")),
    }
}

/// What a drive says in a completion, for people.
pub fn status_text(status: u16) -> String {
    let (kind, code) = (status >> 8 & 7, status & 0xff);
    let what = match (kind, code) {
        (0, 0x02) => "invalid field in command",
        (0, 0x04) => "data transfer error",
        (0, 0x05) => "aborted: power loss",
        (0, 0x06) => "internal error",
        (0, 0x07 | 0x08) => "aborted",
        (0, 0x0b) => "no such namespace, or format of it",
        (0, 0x20) => "namespace is write protected",
        (0, 0x80) => "block out of range",
        (0, 0x81) => "capacity exceeded",
        (0, 0x82) => "namespace not ready",
        (2, 0x80) => "write fault",
        (2, 0x81) => "unrecovered read error",
        (2, 0x82..=0x84) => "end-to-end check failed",
        (2, 0x86) => "access denied",
        (2, 0x87) => "deallocated or unwritten block",
        (3, _) => "the path to the drive failed",
        _ => "see the NVM Express specifications",
    };
    format!("the drive says {what} (NVMe status type {kind}, code {code:#04x})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_what_the_chosen_format_says() {
        let mut it = vec![0; 4096];
        it[25] = 3;
        it[26] = 2;
        it[128 + 8..128 + 12].copy_from_slice(&[0, 0, 12, 0]);
        assert_eq!(block_shift(&it), Ok(12));
        it[128 + 8..128 + 12].copy_from_slice(&[8, 0, 9, 0]);
        assert!(block_shift(&it).unwrap_err().contains("8 bytes of metadata"));
        it[128 + 8..128 + 12].copy_from_slice(&[0, 0, 16, 0]);
        assert!(block_shift(&it).unwrap_err().contains("2^16"));
        // The 18th format: its number is in two parts.
        it[25] = 20;
        it[26] = 1 << 5 | 1;
        it[128 + 4 * 17..128 + 4 * 17 + 4].copy_from_slice(&[0, 0, 9, 0]);
        assert_eq!(block_shift(&it), Ok(9));
    }

    #[test]
    fn commands_have_the_layout_of_the_specification() {
        let device = File::open("/dev/null").unwrap();
        let namespace = Namespace {
            device,
            path: PathBuf::new(),
            id: 7,
            shift: 9,
            transfer_max: 128 << 10,
            volatile_cache: true,
            polled: false,
        };
        let bytes = namespace.transfer(Transfer::WriteThrough, 0x1000 as *const u8, 8192, 5 << 40);
        let word = |at: usize| u32::from_le_bytes(array(&bytes, at));
        assert_eq!((bytes[0], word(4), word(24), word(36)), (1, 7, 0x1000, 8192));
        assert_eq!((word(40), word(44), word(48)), (1 << 31, 2, 15 | 1 << 30));
        assert_eq!(namespace.transfer(Transfer::Read, 0x1000 as *const u8, 4096, 0)[0], 2);
        assert_eq!((namespace.piece(4096), namespace.piece(1 << 20)), (4096, 128 << 10));
    }

    #[test]
    fn a_status_is_told_in_words() {
        assert!(status_text(0x4281).contains("unrecovered read error"));
        assert!(status_text(0x80).contains("out of range"));
    }
}
