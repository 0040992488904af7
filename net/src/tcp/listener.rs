//! Listening: binding, accepting, and giving the address back.

use super::connection::Connection;
use super::{ACCEPT, ConnId, Tcp, name, socket};
use crate::address::Address;
use crate::ring::{Completion, Ring, Token};
use corefs_wire::{Error, ErrorCode, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub struct Listener {
    socket: OwnedFd,
    address: Address,
    /// The multishot accept is in flight.
    accepting: bool,
    /// Accepting failed (no descriptors, no memory): try again at the next scan, not at once.
    failed: bool,
    /// Goes away as soon as nothing is in flight.
    stopped: bool,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            // Somebody may have removed it before us, which is as well.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Tcp {
    /// Listens; port 0 takes a free one. Returns the address in use. `AddressInUse`, or `BadConfig` for an address that
    /// other machines can reach when there is no secret. A Unix socket's file is removed when listening ends, and taken
    /// over from a process that is gone.
    pub fn listen(&mut self, address: &Address) -> Result<Address> {
        if !address.is_local() && self.config.identity.secret.is_none() {
            let what =
                format!("listening on {address}, which other machines can reach, needs a cluster secret");
            return Err(Error::new(ErrorCode::BadConfig, what));
        }
        let (socket, address) =
            socket::listen(address).map_err(|error| error.of(format_args!("listening on {address}")))?;
        let listener =
            Listener { socket, address: address.clone(), accepting: false, failed: false, stopped: false };
        self.listeners.push(Some(listener));
        self.idle_listeners = true;
        Ok(address)
    }

    /// Stops listening; connections stay.
    pub fn stop_listening(&mut self, ring: &mut Ring) {
        for (index, slot) in self.listeners.iter_mut().enumerate() {
            if let Some(listener) = slot {
                listener.stopped = true;
                if listener.accepting {
                    ring.cancel(accept_token(index));
                } else {
                    *slot = None;
                }
            }
        }
    }

    pub(super) fn accept(&mut self, ring: &mut Ring) {
        self.idle_listeners = false;
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            if let Some(listener) = listener
                && !listener.accepting
                && !listener.failed
            {
                listener.accepting = true;
                ring.accept_multishot(listener.socket.as_raw_fd(), accept_token(index));
            }
        }
    }

    pub(super) fn retry_listeners(&mut self) {
        for listener in self.listeners.iter_mut().flatten() {
            self.idle_listeners |= std::mem::take(&mut listener.failed);
        }
    }

    pub(super) fn accepted(&mut self, index: u32, completion: Completion) {
        let Some(slot) = self.listeners.get_mut(index as usize) else { return };
        let Some(listener) = slot else { return };
        let address = listener.address.clone();
        let stopped = listener.stopped;
        if !completion.more() {
            listener.accepting = false;
            listener.failed = completion.result < 0;
            if stopped {
                *slot = None;
            } else {
                self.timed = true;
                self.idle_listeners = true;
            }
        }
        match completion.check() {
            Ok(fd) => {
                // SAFETY: the kernel has just made this descriptor for us.
                let socket = unsafe { OwnedFd::from_raw_fd(fd as i32) };
                if !stopped {
                    self.welcome(socket, address);
                }
            }
            Err(_) if stopped => (),
            Err(error) => tracing::warn!(%address, %error, "accepting failed; trying again shortly"),
        }
    }

    /// A connection beyond the bound, or one that is gone already, is closed at once.
    fn welcome(&mut self, socket: OwnedFd, listener: Address) {
        let address = match listener {
            Address::Unix(_) => Ok(listener),
            Address::Tcp(_) => {
                socket::tune(&socket);
                socket::peer(&socket).map(Address::Tcp)
            }
        };
        let capabilities = self.config.capabilities;
        let Ok(mut connection) = address.and_then(|address| Connection::from(socket, address, capabilities))
        else {
            return;
        };
        connection.deadline = Some(self.deadline());
        if let Some(id) = self.connections.insert(connection) {
            self.timed = true;
            self.touch(id);
        }
    }
}

fn accept_token(index: usize) -> Token {
    name(ACCEPT, ConnId { index: index as u32, generation: 0 })
}
