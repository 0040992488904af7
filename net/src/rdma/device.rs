//! Devices, their ports, and the addresses (GIDs) of these.
//!
//! A device may be an InfiniBand adapter or a network card with RoCE (RDMA over Converged Ethernet: InfiniBand Architecture, annexes A16
//! and A17). A port's GIDs are what peers address: those of RoCE version 2 are its IP addresses, and packets are routed as UDP.

use super::library::{Library, done, made, never_block};
use super::watch::NODES;
use corefs_wire::{Error, ErrorCode, Result};
use ibverbs_sys as sys;
use std::ffi::{CStr, OsStr};
use std::fmt;
use std::mem;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Entries of a port's table that are looked at: more addresses than a port has.
const GIDS_MAX: u32 = 256;

/// How a port speaks. Two ports understand each other only if it is the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Link {
    /// UDP over IP: routed. The best there is on Ethernet, hence first.
    RoceV2 = 1,
    InfiniBand = 2,
    /// Frames of Ethernet without IP: within one network.
    RoceV1 = 3,
}

impl Link {
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::RoceV2, Self::InfiniBand, Self::RoceV1].into_iter().find(|link| *link as u8 == number)
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RoceV2 => "RoCE v2",
            Self::InfiniBand => "InfiniBand",
            Self::RoceV1 => "RoCE v1",
        })
    }
}

/// What a port says of its link, as `ibv_query_port(3)` has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortState {
    Down,
    Initialising,
    Armed,
    Active,
    Unknown,
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "down",
            Self::Initialising => "initialising (InfiniBand: is a subnet manager running?)",
            Self::Armed => "armed",
            Self::Active => "active",
            Self::Unknown => "unknown",
        })
    }
}

/// One address of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gid {
    /// Its place in the port's table, by which the device is told.
    pub index: u8,
    pub bytes: [u8; 16],
    pub link: Link,
}

impl Gid {
    /// The IP address it stands for, if it is one of RoCE version 2.
    pub fn ip(&self) -> Option<IpAddr> {
        (self.link == Link::RoceV2).then(|| {
            let v6 = Ipv6Addr::from(self.bytes);
            v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
        })
    }

    /// Whether it reaches beyond its own link.
    pub fn is_routed(&self) -> bool {
        match self.ip() {
            Some(IpAddr::V4(_)) => true,
            Some(IpAddr::V6(v6)) => !v6.is_unicast_link_local(),
            None => false,
        }
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip() {
            Some(ip) => write!(f, "{ip} ({}, GID {})", self.link, self.index),
            None => write!(f, "{} ({}, GID {})", Ipv6Addr::from(self.bytes), self.link, self.index),
        }
    }
}

/// A port as it was when it was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// From 1.
    pub number: u8,
    pub state: PortState,
    /// Bytes of payload in a packet now, and at most.
    pub mtu: Mtu,
    pub mtu_max: Mtu,
    /// The local identifier in an InfiniBand subnet; 0 on Ethernet.
    pub lid: u16,
    pub gids: Vec<Gid>,
}

/// Payload of a packet, in the steps that the architecture has: 256 << (n - 1) bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Mtu(u8);

impl Mtu {
    /// `None` for what is no step.
    pub fn from_number(number: u8) -> Option<Self> {
        matches!(number, 1..=5).then_some(Self(number))
    }

    pub fn number(self) -> u8 {
        self.0
    }

    pub fn bytes(self) -> u32 {
        128 << self.0
    }
}

/// What a device can do, as far as it is used here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Work requests in a queue, entries of a completion queue, memory windows.
    pub requests: u32,
    pub completions: u32,
    pub windows: u32,
    /// Receives of a queue that several queue pairs share; 0 where there is none.
    pub shared_receives: u32,
    /// Reads by peers, and of peers, that a queue pair has in flight.
    pub reads_in: u8,
    pub reads_out: u8,
    /// Memory windows that a queue pair owns (type 2B): keys that open one range to one peer.
    pub owned_windows: bool,
    /// The kernel does its work, on the cores that everything else has (soft-RoCE).
    pub is_emulated: bool,
}

/// The vendor that the kernel's soft-RoCE names (drivers/infiniband/sw/rxe/rxe_param.h).
const SOFT_ROCE: u32 = 0xFF_FFFF;

/// An open device. `!Send`: its code is called by this thread only.
pub struct Context {
    raw: *mut sys::ibv_context,
    name: String,
    /// Its node, if it is where the kernel makes it.
    node: Option<PathBuf>,
    pub limits: Limits,
    ports: u8,
    pub(super) library: Rc<Library>,
}

impl Context {
    /// Opens every device of this machine that has a `wanted` name; those that can't be opened are named with the reason.
    #[allow(clippy::type_complexity)]
    pub fn open_all(
        library: &Rc<Library>,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<(String, Result<Rc<Self>>)>> {
        let mut count = 0;
        // SAFETY: writes the count, and returns a list that ends with it, or null.
        let list = made("ibv_get_device_list", unsafe { (library.get_device_list)(&mut count) });
        if std::io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) && list.is_err() {
            let what = "this machine has no RDMA device: its kernel's module ib_uverbs isn't loaded";
            return Err(Error::new(ErrorCode::NotFound, what));
        }
        let list = list?;
        let mut found = Vec::new();
        for at in 0..count as usize {
            // SAFETY: the list has `count` devices, valid until it is freed.
            let device = unsafe { *list.add(at) };
            // SAFETY: as above; the name is a string that lives as long as the device.
            let name = unsafe { CStr::from_ptr((library.get_device_name)(device)) };
            let name = name.to_string_lossy().into_owned();
            if !wanted(&name) {
                continue;
            }
            let opened = Self::open(library, device, &name);
            found.push((name, opened.map(Rc::new)));
        }
        // SAFETY: open devices outlive their list (ibv_get_device_list(3)).
        unsafe { (library.free_device_list)(list) };
        Ok(found)
    }

    fn open(library: &Rc<Library>, device: *mut sys::ibv_device, name: &str) -> Result<Self> {
        // SAFETY: the device is of a list that hasn't been freed.
        let raw = made("ibv_open_device", unsafe { (library.open_device)(device) })?;
        let limits = Limits::default();
        // SAFETY: as above; the node's name is a string within the device.
        let node = unsafe { CStr::from_ptr((*device).dev_name.as_ptr()) };
        let node = Path::new(NODES).join(OsStr::from_bytes(node.to_bytes()));
        let mut context = Self {
            raw,
            name: name.to_string(),
            node: node.exists().then_some(node),
            limits,
            ports: 0,
            library: Rc::clone(library),
        };
        let mut found = sys::ibv_device_attr::default();
        // SAFETY: the context is open, and `found` of the type that is written.
        done("ibv_query_device", unsafe { (library.query_device)(raw, &mut found) })?;
        let few = |count: i32| u8::try_from(count).unwrap_or(if count < 0 { 0 } else { u8::MAX });
        let many = |count: i32| u32::try_from(count).unwrap_or(0);
        context.ports = found.phys_port_cnt;
        never_block(context.events_fd())?;
        context.limits = Limits {
            requests: many(found.max_qp_wr),
            completions: many(found.max_cqe),
            windows: many(found.max_mw),
            shared_receives: if found.max_srq > 0 { many(found.max_srq_wr) } else { 0 },
            reads_in: few(found.max_qp_rd_atom),
            reads_out: few(found.max_qp_init_rd_atom),
            owned_windows: found.device_cap_flags & sys::IBV_DEVICE_MEM_WINDOW_TYPE_2B != 0,
            is_emulated: found.vendor_id == SOFT_ROCE,
        };
        Ok(context)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is being taken out: the kernel has removed its node.
    pub fn is_gone(&self) -> bool {
        self.node.as_ref().is_some_and(|node| !node.exists())
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_context {
        self.raw
    }

    /// The calls of the device's own code.
    pub(super) fn ops(&self) -> &sys::ibv_context_ops {
        // SAFETY: the context is open as long as this is, and its table never changes.
        unsafe { &(*self.raw).ops }
    }

    /// All ports, as they are now.
    pub fn ports(&self) -> Result<Vec<Port>> {
        (1..=self.ports).map(|number| self.port(number)).collect()
    }

    fn port(&self, number: u8) -> Result<Port> {
        let mut found = sys::ibv_port_attr::default();
        let to: *mut sys::ibv_port_attr = &mut found;
        // SAFETY: what the function writes is a shorter, older form of this type (verbs.h: _compat_ibv_port_attr); the rest stays zero.
        done("ibv_query_port", unsafe { (self.library.query_port)(self.raw, number, to.cast()) })?;
        let entries = u32::try_from(found.gid_tbl_len).unwrap_or(0).min(GIDS_MAX);
        let infiniband = found.link_layer != sys::IBV_LINK_LAYER_ETHERNET as u8;
        let gids = (0..entries).filter_map(|index| self.gid(number, index, infiniband)).collect();
        Ok(Port {
            number,
            state: match found.state {
                sys::ibv_port_state::IBV_PORT_DOWN => PortState::Down,
                sys::ibv_port_state::IBV_PORT_INIT => PortState::Initialising,
                sys::ibv_port_state::IBV_PORT_ARMED => PortState::Armed,
                sys::ibv_port_state::IBV_PORT_ACTIVE => PortState::Active,
                _ => PortState::Unknown,
            },
            mtu: Mtu::from_number(found.active_mtu as u8).unwrap_or(Mtu(1)),
            mtu_max: Mtu::from_number(found.max_mtu as u8).unwrap_or(Mtu(1)),
            lid: found.lid,
            gids,
        })
    }

    /// `None` for an empty entry of the table.
    fn gid(&self, port: u8, index: u32, infiniband: bool) -> Option<Gid> {
        // SAFETY: all zeros is a valid entry.
        let mut entry: sys::ibv_gid_entry = unsafe { mem::zeroed() };
        let (to, size) = (&raw mut entry, size_of::<sys::ibv_gid_entry>());
        // SAFETY: the entry is of the size that is said.
        let result = unsafe { (self.library.query_gid)(self.raw, port.into(), index, to, 0, size) };
        if result != 0 {
            return None;
        }
        // SAFETY: both forms of the union are plain bytes.
        let bytes = unsafe { entry.gid.raw };
        let link = match entry.gid_type {
            sys::IBV_GID_TYPE_ROCE_V2 => Link::RoceV2,
            sys::IBV_GID_TYPE_ROCE_V1 => Link::RoceV1,
            _ if infiniband => Link::InfiniBand,
            _ => Link::RoceV1,
        };
        let index = u8::try_from(index).ok()?;
        (bytes != [0; 16]).then_some(Gid { index, bytes, link })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: whatever was made of it holds it, and so is gone.
        let result = unsafe { (self.library.close_device)(self.raw) };
        if result != 0 {
            tracing::warn!(device = self.name, result, "closing an RDMA device failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_what_they_stand_for() {
        let mut bytes = [0; 16];
        (bytes[10], bytes[11], bytes[12], bytes[15]) = (0xFF, 0xFF, 10, 1);
        let gid = Gid { index: 1, bytes, link: Link::RoceV2 };
        assert_eq!((gid.ip(), gid.is_routed()), (Some("10.0.0.1".parse().unwrap()), true));
        assert_eq!(gid.to_string(), "10.0.0.1 (RoCE v2, GID 1)");
        assert_eq!(Gid { link: Link::RoceV1, ..gid }.ip(), None);
        let local = Gid { bytes: "fe80::1".parse::<Ipv6Addr>().unwrap().octets(), ..gid };
        assert!(!local.is_routed());
    }

    #[test]
    fn packets_have_five_sizes() {
        let sizes: Vec<u32> = (0..=6).filter_map(Mtu::from_number).map(Mtu::bytes).collect();
        assert_eq!(sizes, [256, 512, 1024, 2048, 4096]);
    }
}
