//! Where a cluster's key-value store is: at the address of a `corefs kv`, or in a FoundationDB.
//!
//! ```text
//! unix:PATH, IP:PORT         the embedded store that a `corefs kv` serves there
//! fdb:CLUSTER_FILE[#NAME]    the part NAME of the FoundationDB that the cluster file leads to; `corefs` if there is no name
//! ```

use crate::role;
use corefs_net::Address;
use corefs_wire::{Error, ErrorCode, Result};
use std::path::PathBuf;

/// Before the cluster file of a FoundationDB.
const FDB: &str = "fdb:";

/// What `--kv` of a manager or metadata server says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Store {
    Served(Address),
    #[cfg(feature = "fdb")]
    Fdb(Place),
}

/// A part of a FoundationDB, for one cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    pub cluster_file: PathBuf,
    pub name: Option<String>,
}

impl Place {
    /// What follows `fdb:`.
    fn parse(text: &str) -> Result<Self> {
        let (file, name) = match text.rsplit_once('#') {
            Some((file, name)) => (file, Some(name.to_owned())),
            None => (text, None),
        };
        if file.is_empty() || name.as_deref() == Some("") {
            let what = format!("--kv {FDB}{text}: give it as {FDB}CLUSTER_FILE or {FDB}CLUSTER_FILE#NAME");
            return Err(Error::new(ErrorCode::BadConfig, what));
        }
        Ok(Self { cluster_file: file.into(), name })
    }

    /// As `--kv` takes it.
    pub fn text(&self) -> String {
        let name = self.name.as_ref().map(|name| format!("#{name}")).unwrap_or_default();
        format!("{FDB}{}{name}", self.cluster_file.display())
    }

    /// Opens it; the client's network thread gets `core`, or the last one that this process may use: shards take the first ones.
    ///
    /// Errors: those of `kv::fdb::Fdb::open`.
    #[cfg(feature = "fdb")]
    pub async fn open(&self, core: Option<usize>) -> Result<corefs_kv::Fdb> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let name = self.name.as_deref().unwrap_or("corefs");
        corefs_kv::Fdb::open(&self.cluster_file, name, core.unwrap_or(cores - 1)).await
    }
}

impl Store {
    /// Reads what a person wrote. Errors: `BadConfig` that says what is wrong, or that this binary has no FoundationDB in it.
    pub fn parse(text: &str) -> Result<Self> {
        match text.strip_prefix(FDB) {
            Some(place) => Self::of_place(Place::parse(place)?),
            None => Ok(Self::Served(role::address("kv", text)?)),
        }
    }

    #[cfg(feature = "fdb")]
    fn of_place(place: Place) -> Result<Self> {
        Ok(Self::Fdb(place))
    }

    #[cfg(not(feature = "fdb"))]
    fn of_place(place: Place) -> Result<Self> {
        let what = format!(
            "--kv {}: this corefs was built without FoundationDB; build it with \
             `cargo build --release --features fdb`, or leave that to `corefs kv`",
            place.text()
        );
        Err(Error::new(ErrorCode::BadConfig, what))
    }
}

/// Whether a store is in FoundationDB, which says itself how many copies it keeps; whatever this binary can do about it.
pub fn is_fdb(text: &str) -> bool {
    text.starts_with(FDB)
}

/// What `--kv` of `corefs up` says: only a FoundationDB, because the embedded store is its own. The path is made absolute.
pub fn of_up(text: &str) -> Result<Place> {
    let Some(place) = text.strip_prefix(FDB) else {
        let what =
            format!("--kv {text}: `corefs up` keeps metadata in its own directory, or in {FDB}CLUSTER_FILE");
        return Err(Error::new(ErrorCode::BadConfig, what));
    };
    let place = Place::parse(place)?;
    Store::of_place(place.clone())?;
    let cluster_file = place.cluster_file.canonicalize();
    let cluster_file =
        cluster_file.map_err(|error| Error::from(error).of(format!("--kv {}", place.text())))?;
    Ok(Place { cluster_file, ..place })
}

/// Asks the store of a cluster of `corefs up` for a version, so that what is wrong is said before anything is started. That of a
/// `fresh` cluster must be empty: it would mix with whatever is there.
#[cfg_attr(not(feature = "fdb"), expect(unused_variables, reason = "without FoundationDB it ends before"))]
pub fn try_out(text: &str, fresh: bool) -> Result<()> {
    match Store::parse(text)? {
        Store::Served(_) => {
            Err(Error::new(ErrorCode::BadConfig, format!("cluster.toml: {text} is no {FDB}...")))
        }
        #[cfg(feature = "fdb")]
        Store::Fdb(place) => role::block_on("kv", async move {
            use corefs_kv::{Direction, Isolation, KeyRange, KvEngine, Transaction, retry};
            let store = place.open(None).await?;
            let first = async |txn: &mut <corefs_kv::Fdb as KvEngine>::Txn| {
                txn.range(&KeyRange::all(), 1, Direction::Forward, Isolation::Snapshot).await
            };
            if fresh && !retry::run(&store, first).await?.pairs.is_empty() {
                let what = format!(
                    "{}: a cluster is there already; give another name after #, or start `corefs mgmtd` and \
                     `corefs meta` on it",
                    place.text()
                );
                return Err(Error::new(ErrorCode::BadConfig, what));
            }
            Ok(())
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_a_file_and_maybe_a_name() {
        let place = |text: &str| Place::parse(text).map(|place| (place.cluster_file, place.name));
        assert_eq!(place("/etc/fdb.cluster"), Ok(("/etc/fdb.cluster".into(), None)));
        assert_eq!(place("/a#b/c#d"), Ok(("/a#b/c".into(), Some("d".into()))));
        for text in ["", "#", "#name", "/etc/fdb.cluster#"] {
            assert_eq!(place(text).unwrap_err().code, ErrorCode::BadConfig, "{text}");
        }
        assert_eq!(Place::parse("x#y").unwrap().text(), "fdb:x#y");
        assert!(matches!(Store::parse("127.0.0.1:1"), Ok(Store::Served(_))));
    }

    #[test]
    #[cfg(not(feature = "fdb"))]
    fn a_binary_without_foundationdb_says_so() {
        for outcome in
            [Store::parse("fdb:/etc/fdb.cluster").map(drop), of_up("fdb:/etc/fdb.cluster").map(drop)]
        {
            let error = outcome.unwrap_err();
            assert!(
                error.code == ErrorCode::BadConfig && error.message.contains("--features fdb"),
                "{error}"
            );
        }
    }

    #[test]
    fn up_takes_no_other_store() {
        assert!(of_up("127.0.0.1:1").unwrap_err().message.contains("its own directory"));
    }
}
