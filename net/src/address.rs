//! Where a peer listens: `192.0.2.7:8500`, `[2001:db8::1]:8500` or `unix:/path`.

use corefs_wire::{Error, ErrorCode, Result};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Longest path of a Unix socket (bytes): `sun_path` less its terminating NUL.
pub const UNIX_PATH_MAX: usize = 107;

/// Where a peer listens.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Address {
    Tcp(SocketAddr),
    /// An absolute path of at most [`UNIX_PATH_MAX`] bytes.
    Unix(PathBuf),
}

impl Address {
    /// Whether only processes of this machine can reach it: such a listener may go without a secret.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl FromStr for Address {
    type Err = Error;

    /// Reads what `Display` writes. Host names aren't resolved: configuration names addresses.
    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::new(ErrorCode::BadConfig, format!("address `{text}`: {why}"));
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(bad("the path of a Unix socket must be absolute"));
            }
            if path.len() > UNIX_PATH_MAX || path.contains('\0') {
                return Err(bad("the path of a Unix socket is at most 107 bytes"));
            }
            return Ok(Self::Unix(path.into()));
        }
        text.parse().map(Self::Tcp).map_err(|_| bad("expected IP:PORT, [IPv6]:PORT or unix:/path"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for text in ["127.0.0.1:80", "[::1]:8500", "unix:/run/corefs/kv.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn refuses_nonsense() {
        let long = format!("unix:/{}", "x".repeat(UNIX_PATH_MAX));
        for text in ["", "localhost", "127.0.0.1", "1.2.3.4:99999", "unix:relative", long.as_str()] {
            assert_eq!(text.parse::<Address>().unwrap_err().code, ErrorCode::BadConfig, "{text}");
        }
    }

    #[test]
    fn knows_what_is_local() {
        let local = |text: &str| text.parse::<Address>().unwrap().is_local();
        assert!(local("127.0.0.5:1") && local("[::1]:1") && local("unix:/x"));
        assert!(!local("0.0.0.0:1") && !local("10.0.0.1:1"));
    }
}
