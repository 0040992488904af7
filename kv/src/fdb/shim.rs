//! The functions of FoundationDB's C library, forwarded to a `libfdb_c.so` that is opened on first use.
//!
//! The crate `foundationdb` calls these names. Linked against the library, a binary wouldn't even start where it isn't installed;
//! with this file the linker finds the names here (`build.rs` sees to the rest), and [`load`] opens the library by dlopen(3)
//! and finds its functions by dlsym(3). Signatures are those of `foundationdb/fdb_c.h`, API version [`API_VERSION`]: pointers to
//! FoundationDB's own structures, which nobody looks into here, are `*mut c_void`.
//!
//! Invariant: nothing of the crate `foundationdb` is called before [`load`] has succeeded.

use corefs_wire::{Error, ErrorCode, Result};
use libloading::Library;
use std::ffi::{CStr, c_char, c_double, c_int, c_void};
use std::sync::OnceLock;

/// What `foundationdb` was built for (its cargo feature `fdb-7_3`): the oldest library that will do.
pub const API_VERSION: c_int = 730;
/// The library's file, looked for where dlopen(3) looks: `LD_LIBRARY_PATH`, the linker's cache, `/usr/lib`.
const LIBRARY: &str = "libfdb_c.so";
/// What to do about a library that is missing or won't do.
const REMEDY: &str = "install FoundationDB's package foundationdb-clients, version 7.3, on this machine (the releases of \
     FoundationDB have it for Debian and Red Hat), or name the directory of such a libfdb_c.so in LD_LIBRARY_PATH";

/// Called by FoundationDB's network thread when a future is ready.
type Callback = unsafe extern "C" fn(*mut c_void, *mut c_void);

macro_rules! forward {
    ($($name:ident($($arg:ident: $kind:ty),*) $(-> $result:ty)?;)*) => {
        /// Where the functions of the opened library are.
        struct Functions {
            // SAFETY: types of functions; those who call them say why they may.
            $($name: unsafe extern "C" fn($($kind),*) $(-> $result)?,)*
        }

        impl Functions {
            /// Finds all of them, or names the first one that the library lacks.
            fn find(library: &Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the types are those of the library's header. The library is never closed, so that the
                    // addresses stay good.
                    $($name: unsafe {
                        *library
                            .get(concat!(stringify!($name), "\0").as_bytes())
                            .map_err(|_| stringify!($name))?
                    },)*
                })
            }
        }

        $(
            /// Forwards to the library.
            ///
            /// # Safety
            /// As `fdb_c.h` says for the function of this name, and [`load`] has succeeded.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($arg: $kind),*) $(-> $result)? {
                // SAFETY: the caller keeps the function's own rules.
                unsafe { (functions().$name)($($arg),*) }
            }
        )*
    };
}

forward! {
    fdb_select_api_version_impl(runtime: c_int, header: c_int) -> c_int;
    fdb_get_max_api_version() -> c_int;
    fdb_get_client_version() -> *const c_char;
    fdb_get_error(code: c_int) -> *const c_char;
    fdb_error_predicate(predicate: c_int, code: c_int) -> c_int;
    fdb_network_set_option(option: c_int, value: *const u8, length: c_int) -> c_int;
    fdb_setup_network() -> c_int;
    fdb_run_network() -> c_int;
    fdb_stop_network() -> c_int;

    fdb_future_destroy(future: *mut c_void);
    fdb_future_is_ready(future: *mut c_void) -> c_int;
    fdb_future_set_callback(future: *mut c_void, callback: Option<Callback>, parameter: *mut c_void) -> c_int;
    fdb_future_get_error(future: *mut c_void) -> c_int;
    fdb_future_get_int64(future: *mut c_void, out: *mut i64) -> c_int;
    fdb_future_get_key(future: *mut c_void, key: *mut *const u8, length: *mut c_int) -> c_int;
    fdb_future_get_value(
        future: *mut c_void, present: *mut c_int, value: *mut *const u8, length: *mut c_int
    ) -> c_int;
    fdb_future_get_keyvalue_array(
        future: *mut c_void, pairs: *mut *const c_void, count: *mut c_int, more: *mut c_int
    ) -> c_int;
    fdb_future_get_mappedkeyvalue_array(
        future: *mut c_void, pairs: *mut *const c_void, count: *mut c_int, more: *mut c_int
    ) -> c_int;
    fdb_future_get_key_array(future: *mut c_void, keys: *mut *const c_void, count: *mut c_int) -> c_int;
    fdb_future_get_string_array(
        future: *mut c_void, strings: *mut *mut *const c_char, count: *mut c_int
    ) -> c_int;

    fdb_create_database(cluster_file: *const c_char, out: *mut *mut c_void) -> c_int;
    fdb_database_destroy(database: *mut c_void);
    fdb_database_set_option(database: *mut c_void, option: c_int, value: *const u8, length: c_int) -> c_int;
    fdb_database_create_transaction(database: *mut c_void, out: *mut *mut c_void) -> c_int;
    fdb_database_get_main_thread_busyness(database: *mut c_void) -> c_double;
    fdb_database_get_client_status(database: *mut c_void) -> *mut c_void;

    fdb_transaction_destroy(transaction: *mut c_void);
    fdb_transaction_cancel(transaction: *mut c_void);
    fdb_transaction_reset(transaction: *mut c_void);
    fdb_transaction_set_option(
        transaction: *mut c_void, option: c_int, value: *const u8, length: c_int
    ) -> c_int;
    fdb_transaction_set_read_version(transaction: *mut c_void, version: i64);
    fdb_transaction_get_read_version(transaction: *mut c_void) -> *mut c_void;
    fdb_transaction_get(
        transaction: *mut c_void, key: *const u8, length: c_int, snapshot: c_int
    ) -> *mut c_void;
    fdb_transaction_get_key(
        transaction: *mut c_void, key: *const u8, length: c_int, or_equal: c_int, offset: c_int, snapshot: c_int
    ) -> *mut c_void;
    fdb_transaction_get_addresses_for_key(
        transaction: *mut c_void, key: *const u8, length: c_int
    ) -> *mut c_void;
    fdb_transaction_get_range(
        transaction: *mut c_void,
        begin: *const u8, begin_length: c_int, begin_or_equal: c_int, begin_offset: c_int,
        end: *const u8, end_length: c_int, end_or_equal: c_int, end_offset: c_int,
        limit: c_int, target_bytes: c_int, mode: c_int, iteration: c_int, snapshot: c_int, reverse: c_int
    ) -> *mut c_void;
    fdb_transaction_get_mapped_range(
        transaction: *mut c_void,
        begin: *const u8, begin_length: c_int, begin_or_equal: c_int, begin_offset: c_int,
        end: *const u8, end_length: c_int, end_or_equal: c_int, end_offset: c_int,
        mapper: *const u8, mapper_length: c_int,
        limit: c_int, target_bytes: c_int, mode: c_int, iteration: c_int, snapshot: c_int, reverse: c_int
    ) -> *mut c_void;
    fdb_transaction_get_estimated_range_size_bytes(
        transaction: *mut c_void, begin: *const u8, begin_length: c_int, end: *const u8, end_length: c_int
    ) -> *mut c_void;
    fdb_transaction_get_range_split_points(
        transaction: *mut c_void, begin: *const u8, begin_length: c_int, end: *const u8, end_length: c_int,
        chunk_size: i64
    ) -> *mut c_void;
    fdb_transaction_get_approximate_size(transaction: *mut c_void) -> *mut c_void;
    fdb_transaction_set(
        transaction: *mut c_void, key: *const u8, key_length: c_int, value: *const u8, value_length: c_int
    );
    fdb_transaction_atomic_op(
        transaction: *mut c_void, key: *const u8, key_length: c_int, operand: *const u8, operand_length: c_int,
        operation: c_int
    );
    fdb_transaction_clear(transaction: *mut c_void, key: *const u8, length: c_int);
    fdb_transaction_clear_range(
        transaction: *mut c_void, begin: *const u8, begin_length: c_int, end: *const u8, end_length: c_int
    );
    fdb_transaction_watch(transaction: *mut c_void, key: *const u8, length: c_int) -> *mut c_void;
    fdb_transaction_add_conflict_range(
        transaction: *mut c_void, begin: *const u8, begin_length: c_int, end: *const u8, end_length: c_int,
        kind: c_int
    ) -> c_int;
    fdb_transaction_commit(transaction: *mut c_void) -> *mut c_void;
    fdb_transaction_get_committed_version(transaction: *mut c_void, out: *mut i64) -> c_int;
    fdb_transaction_get_versionstamp(transaction: *mut c_void) -> *mut c_void;
    fdb_transaction_on_error(transaction: *mut c_void, code: c_int) -> *mut c_void;
}

/// The opened library, for as long as the process lives. FoundationDB allows no more than one life a process.
struct Opened {
    functions: Functions,
    _library: Library,
}

/// What came of opening it.
static OPENED: OnceLock<Result<Opened>> = OnceLock::new();

fn functions() -> &'static Functions {
    match OPENED.get() {
        Some(Ok(opened)) => &opened.functions,
        _ => panic!("FoundationDB's library is opened before anything of it is called"),
    }
}

/// Opens the library, if nobody has tried to yet.
///
/// Errors: `BadConfig` that says what to install, when the library is missing or too old.
pub fn load() -> Result<()> {
    OPENED.get_or_init(open).as_ref().map(drop).map_err(Error::clone)
}

fn open() -> Result<Opened> {
    // SAFETY: what the library does as it is loaded is part of FoundationDB's contract with its users.
    let library = unsafe { Library::new(LIBRARY) }.map_err(|error| {
        let what = format!("FoundationDB's client library can't be opened ({error}); {REMEDY}");
        Error::new(ErrorCode::BadConfig, what)
    })?;
    let functions = Functions::find(&library).map_err(|missing| unfit(&format!("it has no {missing}")))?;
    // SAFETY: takes nothing, and may be called before an API version is selected.
    let newest = unsafe { (functions.fdb_get_max_api_version)() };
    if newest < API_VERSION {
        return Err(unfit(&format!("its API version is {newest}, and {API_VERSION} is needed")));
    }
    Ok(Opened { functions, _library: library })
}

fn unfit(why: &str) -> Error {
    let what = format!(
        "the FoundationDB client library {LIBRARY} found here is too old for this corefs: {why}; {REMEDY}"
    );
    Error::new(ErrorCode::BadConfig, what)
}

/// The version of the opened library, as in `7.3.77`.
pub fn client_version() -> String {
    // SAFETY: the library returns a string of its own, which lives as long as the library.
    let text = unsafe { CStr::from_ptr(fdb_get_client_version()) };
    // "7.3.77,<commit>,<protocol>"
    let text = text.to_string_lossy();
    text.split(',').next().unwrap_or_default().to_owned()
}
