//! libibverbs, opened when it is needed: one binary starts where there is no RDMA, too, and says so.
//!
//! Types and layouts are `ibverbs-sys`', which has them from rdma-core's headers. None of its functions is named, so that nothing is
//! linked to (docs/adr/0017). The few calls of the data path (posting, polling) are no functions of the library at all: they are in the table
//! of the device's own code, which [`Context`](super::device::Context) has.

use corefs_wire::{Error, ErrorCode, Result};
use ibverbs_sys as sys;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::os::fd::RawFd;
use std::rc::Rc;

/// The name that every distribution has it under: the library's binary interface has been the same since 2006.
const NAME: &str = "libibverbs.so.1";

macro_rules! functions {
    ($($name:ident = $symbol:literal ($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions that are called, as ibv_*(3) describe them.
        pub struct Library {
            // SAFETY: pointers to functions whose types are those of the header; whoever calls argues.
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            /// Closed last: the pointers lead into it.
            _handle: libloading::Library,
        }

        impl Library {
            /// Opens it. `Os`, with what to install, where it is missing or too old.
            pub fn open() -> Result<Rc<Self>> {
                if !outlive_devices() {
                    tracing::debug!("{DISASSOCIATED} isn't set: what a device that breaks has of this process's memory is lost");
                }
                // SAFETY: the library's initialisers register drivers and do nothing else.
                let handle = unsafe { libloading::Library::new(NAME) }.map_err(missing)?;
                $(
                    // SAFETY: the symbol is a function of this type in all versions of this name.
                    let $name = *unsafe { handle.get(concat!($symbol, "\0").as_bytes()) }.map_err(missing)?;
                )*
                Ok(Rc::new(Self { $($name,)* _handle: handle }))
            }
        }
    };
}

/// What lets objects of a device be destroyed whose kernel part is gone with it (ibv_open_device(3)). Otherwise the library passes the kernel's EIO on, and whoever
/// is told so can't know that the device has let go of the memory. The condition is kept: a context belongs to one thread, which asks for no event while it
/// destroys something.
const DISASSOCIATED: &str = "RDMAV_ALLOW_DISASSOC_DESTROY";

/// Has the library destroy objects of devices that are gone. To be called at the start of a program: it does nothing once there are other threads, since these
/// may be reading the environment. Whether it is so now.
pub fn outlive_devices() -> bool {
    if std::env::var_os(DISASSOCIATED).is_some() {
        return true;
    }
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    if alone {
        // SAFETY: this is the only thread, so nobody reads the environment meanwhile, and nobody can start another one.
        unsafe { std::env::set_var(DISASSOCIATED, "1") };
    }
    alone
}

fn missing(error: libloading::Error) -> Error {
    let what = "RDMA's library can't be opened: install libibverbs1 and ibverbs-providers (Debian)";
    Error::new(ErrorCode::Os, format!("{what}: {error}"))
}

functions! {
    get_device_list = "ibv_get_device_list" (*mut c_int) -> *mut *mut sys::ibv_device;
    free_device_list = "ibv_free_device_list" (*mut *mut sys::ibv_device);
    get_device_name = "ibv_get_device_name" (*mut sys::ibv_device) -> *const c_char;
    open_device = "ibv_open_device" (*mut sys::ibv_device) -> *mut sys::ibv_context;
    close_device = "ibv_close_device" (*mut sys::ibv_context) -> c_int;
    query_device = "ibv_query_device" (*mut sys::ibv_context, *mut sys::ibv_device_attr) -> c_int;
    query_port = "ibv_query_port" (*mut sys::ibv_context, u8, *mut sys::_compat_ibv_port_attr) -> c_int;
    query_gid = "_ibv_query_gid_ex" (*mut sys::ibv_context, u32, u32, *mut sys::ibv_gid_entry, u32, usize) -> c_int;
    get_async_event = "ibv_get_async_event" (*mut sys::ibv_context, *mut sys::ibv_async_event) -> c_int;
    ack_async_event = "ibv_ack_async_event" (*mut sys::ibv_async_event);
    alloc_pd = "ibv_alloc_pd" (*mut sys::ibv_context) -> *mut sys::ibv_pd;
    dealloc_pd = "ibv_dealloc_pd" (*mut sys::ibv_pd) -> c_int;
    reg_mr = "ibv_reg_mr" (*mut sys::ibv_pd, *mut c_void, usize, c_int) -> *mut sys::ibv_mr;
    dereg_mr = "ibv_dereg_mr" (*mut sys::ibv_mr) -> c_int;
    create_channel = "ibv_create_comp_channel" (*mut sys::ibv_context) -> *mut sys::ibv_comp_channel;
    destroy_channel = "ibv_destroy_comp_channel" (*mut sys::ibv_comp_channel) -> c_int;
    create_cq = "ibv_create_cq" (*mut sys::ibv_context, c_int, *mut c_void, *mut sys::ibv_comp_channel, c_int) -> *mut sys::ibv_cq;
    destroy_cq = "ibv_destroy_cq" (*mut sys::ibv_cq) -> c_int;
    get_cq_event = "ibv_get_cq_event" (*mut sys::ibv_comp_channel, *mut *mut sys::ibv_cq, *mut *mut c_void) -> c_int;
    ack_cq_events = "ibv_ack_cq_events" (*mut sys::ibv_cq, c_uint);
    create_qp = "ibv_create_qp" (*mut sys::ibv_pd, *mut sys::ibv_qp_init_attr) -> *mut sys::ibv_qp;
    modify_qp = "ibv_modify_qp" (*mut sys::ibv_qp, *mut sys::ibv_qp_attr, c_int) -> c_int;
    destroy_qp = "ibv_destroy_qp" (*mut sys::ibv_qp) -> c_int;
    create_srq = "ibv_create_srq" (*mut sys::ibv_pd, *mut sys::ibv_srq_init_attr) -> *mut sys::ibv_srq;
    destroy_srq = "ibv_destroy_srq" (*mut sys::ibv_srq) -> c_int;
    wc_status_str = "ibv_wc_status_str" (sys::ibv_wc_status::Type) -> *const c_char;
}

/// Reading this descriptor returns at once, whether there is something or not.
pub(super) fn never_block(fd: RawFd) -> Result<()> {
    // SAFETY: plain system calls.
    let result = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    if result == -1 { Err(std::io::Error::last_os_error().into()) } else { Ok(()) }
}

/// What a call that returns an error number, or sets it, failed with.
pub(super) fn failed(what: &str, number: i32) -> Error {
    let error = std::io::Error::from_raw_os_error(number);
    Error::new(ErrorCode::Os, format!("{what}: {error}"))
}

/// The same for calls that return a pointer: a null one is the error that errno has.
pub(super) fn made<T>(what: &str, pointer: *mut T) -> Result<*mut T> {
    match pointer.is_null() {
        false => Ok(pointer),
        true => Err(failed(what, std::io::Error::last_os_error().raw_os_error().unwrap_or(0))),
    }
}

/// And for those that return 0 or an error number.
pub(super) fn done(what: &str, result: c_int) -> Result<()> {
    if result == 0 { Ok(()) } else { Err(failed(what, result.abs())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_left_alone_while_there_are_other_threads() {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        assert!(!outlive_devices() && std::env::var_os(DISASSOCIATED).is_none());
        drop(done);
        assert!(other.join().unwrap().is_err());
    }
}
