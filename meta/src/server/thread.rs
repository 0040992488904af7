//! A metadata server on a thread of its own in the process that has the store: what it asks of the store are function calls then, and no
//! messages.

use super::{MetaOptions, MetaServer, learn_cluster};
use corefs_kv::KvEngine;
use corefs_kv::embedded::oneshot;
use corefs_net::{Address, executor};
use corefs_wire::{Error, ErrorCode, Result};
use futures_lite::future::or;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

/// A metadata server that is coming up, or is up.
pub struct MetaThread {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<()>>,
}

impl MetaThread {
    /// Starts the thread and returns at once: the server waits for a manager, which may be waiting for the store. `ready` is told where
    /// others reach it when they can; `failed` is told when it has ended and wasn't asked to. Both are called on the thread.
    pub fn start<E: KvEngine + Send>(
        options: MetaOptions,
        engine: E,
        ready: impl FnOnce(&Address) + Send + 'static,
        failed: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let live = move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| live(options, engine, ready, stopped)));
            let panicked = |_| Err(Error::new(ErrorCode::Internal, "a metadata server's thread panicked"));
            let outcome = outcome.unwrap_or_else(panicked);
            if let Err(error) = &outcome {
                tracing::error!(%error, "the metadata server has ended");
                failed();
            }
            outcome
        };
        let thread = std::thread::Builder::new().name("corefs-meta".into()).spawn(live)?;
        Ok(Self { stop, thread })
    }

    /// Answers what is in progress and ends the thread. The error with which it ended, if one did.
    pub fn stop(self) -> Result<()> {
        self.stop.send(());
        let panicked = |_| Err(Error::new(ErrorCode::Internal, "a metadata server's thread panicked"));
        self.thread.join().unwrap_or_else(panicked)
    }
}

/// The thread's life. Two executors, one after the other: a thread's endpoint knows its cluster, which has to be asked for.
fn live<E: KvEngine>(
    options: MetaOptions,
    engine: E,
    ready: impl FnOnce(&Address) + 'static,
    mut stopped: oneshot::Receiver<()>,
) -> Result<()> {
    let asked = options.clone();
    let (mut stopped, cluster) = executor::run_alone(async move {
        let cluster = unless(&mut stopped, learn_cluster(&asked)).await;
        (stopped, cluster)
    });
    let Some(cluster) = cluster? else { return Ok(()) };
    executor::run_alone(async move {
        let starting = MetaServer::start_in(cluster, options, engine);
        let Some(server) = unless(&mut stopped, starting).await? else { return Ok(()) };
        ready(server.address());
        stopped.await;
        server.stop().await
    })
}

/// What comes of `work`; `None` once `stopped` is told first.
async fn unless<T>(
    stopped: &mut oneshot::Receiver<()>,
    work: impl Future<Output = Result<T>>,
) -> Result<Option<T>> {
    let stop = async {
        stopped.await;
        Ok(None)
    };
    or(async { work.await.map(Some) }, stop).await
}
