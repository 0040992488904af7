//! What all roles share: the secret, the executor, the ready line, the clean stop.

use crate::directory::read_secret;
use crate::{output, signals};
use corefs_net::handshake::{Identity, Role, Secret};
use corefs_net::{Address, Node, NodeConfig};
use corefs_wire::{Error, ErrorCode, Result, Uuid};
use futures_lite::future;
use glommio::Placement;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{SystemTime, UNIX_EPOCH};

/// Buffers of an endpoint that carries no bulk data (bytes).
const CONTROL_POOL: usize = 4 << 20;

/// Runs a role until a stop signal. `start` brings it up and gives it with the address it serves on; `ready ADDRESS`
/// is printed then; `stop` brings it down. One that is told to stop before it is ready, as while it waits for a manager, ends where it is:
/// it has promised nothing yet.
pub fn run<S, Start, Stop>(
    name: &str,
    start: Start,
    stop: impl FnOnce(S) -> Stop + 'static,
) -> Result<ExitCode>
where
    S: 'static,
    Start: Future<Output = Result<(S, String)>> + 'static,
    Stop: Future<Output = Result<()>>,
{
    let stopped = StopSignal::watch();
    block_on(name, async move {
        let started = async { Some(start.await) };
        let given_up = async {
            stopped.clone().await;
            None
        };
        let Some(started) = future::or(started, given_up).await else {
            tracing::info!("stopped before it was ready");
            return Ok(ExitCode::SUCCESS);
        };
        let (server, address) = started?;
        output::line(&format!("ready {address}"))?;
        stopped.await;
        stop(server).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Runs a future on an executor of this thread.
pub fn block_on<T>(name: &str, future: impl Future<Output = Result<T>> + 'static) -> Result<T> {
    let executor = corefs_net::executor::builder(Placement::Unbound).name(name).make();
    let executor =
        executor.map_err(|error| Error::new(ErrorCode::Os, format!("starting an executor: {error}")))?;
    executor.run(future)
}

/// Reads the secret file if one is named.
pub fn secret(path: Option<&Path>) -> Result<Option<Secret>> {
    path.map(read_secret).transpose()
}

/// Reads an address that a person wrote.
pub fn address(flag: &str, text: &str) -> Result<Address> {
    text.parse().map_err(|error: Error| {
        Error::new(ErrorCode::BadConfig, format!("--{flag} {text}: {}", error.message))
    })
}

/// Reads the managers' addresses; there must be one.
pub fn managers(texts: &[String]) -> Result<Vec<Address>> {
    if texts.is_empty() {
        let what = "give --manager ADDRESS: `corefs up` prints it in its ready line";
        return Err(Error::new(ErrorCode::BadConfig, what));
    }
    texts.iter().map(|text| address("manager", text)).collect()
}

/// A control endpoint of this process: no bulk data, a fresh incarnation.
pub fn endpoint(role: Role, secret: Option<Secret>) -> Result<Node> {
    let incarnation = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
    let identity = Identity { role, id: 0, incarnation, cluster: Uuid::NIL, secret };
    Node::start(NodeConfig { pool_bytes: CONTROL_POOL, ..NodeConfig::new(identity) })
}

/// The key-value store that `corefs kv` serves at `address`.
pub fn connect_kv(address: Address, role: Role, secret: Option<Secret>) -> Result<corefs_kv::remote::Client> {
    let seed = u64::from(std::process::id()) << 32 | u64::from(role as u8);
    Ok(corefs_kv::remote::Client::new(endpoint(role, secret)?, address, seed))
}

/// Resolves when a stop signal has come.
#[derive(Clone)]
struct StopSignal(Arc<Mutex<(bool, Option<Waker>)>>);

impl StopSignal {
    fn watch() -> Self {
        let signal = Self(Arc::default());
        let theirs = signal.clone();
        signals::on_stop(move || {
            let mut state = theirs.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            state.0 = true;
            if let Some(waker) = state.1.take() {
                waker.wake();
            }
        });
        signal
    }
}

impl Future for StopSignal {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if state.0 {
            return Poll::Ready(());
        }
        state.1 = Some(context.waker().clone());
        Poll::Pending
    }
}
