//! What other processes ask of the manager, one file an operation. All are async over the store and the clock passed
//! in, with no runtime's types; the bounds of what a request may hold are checked here, before anything is done.
//!
//! All answer `NotPrimary` on a manager that doesn't lead; its message names the one that does, if one is known.

mod assumed;
mod change_moving;
mod change_node;
mod check_clients;
mod end_client;
mod get_routing;
mod get_status;
mod node_heartbeat;
mod register_meta;
mod register_node;
mod renew_client;

pub use change_moving::change_moving;
pub use change_node::change_node;
pub use check_clients::check_clients;
pub use end_client::end_client;
pub use get_routing::{WAIT_MS_MAX, WAITERS_MAX, get_routing};
pub use get_status::get_status;
pub use node_heartbeat::node_heartbeat;
pub use register_meta::register_meta;
pub use register_node::register_node;
pub use renew_client::{CLIENTS_MAX, renew_client};

use crate::cluster::formation::ADDRESS_MAX;
use corefs_wire::{Error, ErrorCode, Result};
use std::net::SocketAddr;

/// Longest domain or client name (bytes).
const NAME_MAX: usize = 255;

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorCode::InvalidArgument, text)
}

/// An address that peers could reach: `IP:PORT` or `unix:/path`, as `corefs_net::Address` writes them.
fn check_address(what: &str, address: &str) -> Result<()> {
    if address.len() > ADDRESS_MAX {
        return Err(invalid(format!("{what}: an address of {} bytes", address.len())));
    }
    if address.strip_prefix("unix:").is_some_and(|path| path.starts_with('/') && !path.contains('\0')) {
        return Ok(());
    }
    let socket: SocketAddr = address
        .parse()
        .map_err(|_| invalid(format!("{what} `{address}`: expected IP:PORT, [IPv6]:PORT or unix:/path")))?;
    if socket.port() == 0 || socket.ip().is_unspecified() {
        return Err(invalid(format!("{what}: nobody can connect to {address}")));
    }
    Ok(())
}

fn check_name(what: &str, name: &str) -> Result<()> {
    let printable = !name.chars().any(char::is_control);
    if name.len() <= NAME_MAX && printable {
        return Ok(());
    }
    Err(invalid(format!("{what}: at most {NAME_MAX} bytes without control characters")))
}
