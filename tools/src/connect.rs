//! How commands for people reach a cluster: the flags they share, and a client on this thread.

use crate::role;
use corefs_client::{Client, ClientOptions};
use corefs_net::Node;
use corefs_net::handshake::Role;
use corefs_wire::Result;
use corefs_wire::control::Call;
use corefs_wire::control::mgmtd::StatusT;
use std::future::Future;
use std::path::PathBuf;

/// Which cluster to talk to.
#[derive(clap::Args, Clone, Debug)]
pub struct Cluster {
    /// Address of a manager, as `corefs up` prints it; repeat for several, or put commas between them.
    #[arg(
        long,
        value_name = "ADDR",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400",
        env = "COREFS_MANAGER"
    )]
    pub manager: Vec<String>,
    /// File with the cluster's secret; needed for clusters that other machines can reach.
    #[arg(long, value_name = "FILE", env = "COREFS_SECRET_FILE")]
    pub secret_file: Option<PathBuf>,
    /// By what connections go: auto (RDMA where both ends have it and it works, TCP otherwise), tcp, or rdma (an error
    /// where there is none, here or at a storage node, or it doesn't work) [default: auto].
    /// `corefs doctor` shows what there is.
    #[arg(long, value_name = "WAY", env = "COREFS_TRANSPORT")]
    pub transport: Option<String>,
}

impl Cluster {
    pub fn options(&self, name: &str) -> Result<ClientOptions> {
        let secret = role::secret(self.secret_file.as_deref())?;
        let mut options = ClientOptions::new(role::managers(&self.manager)?, secret);
        if let Some(transport) = &self.transport {
            options.transport = transport.parse()?;
        }
        options.name = name.to_owned();
        Ok(options)
    }

    /// One call to whichever manager leads, also of a cluster that has no chains yet.
    pub fn ask_manager<C: Call + 'static>(&self, name: &str, request: C) -> Result<C::Reply>
    where
        C::Reply: 'static,
    {
        let options = self.options(name)?;
        role::block_on(name, async move { Client::ask_managers(options, &request).await })
    }

    /// How the cluster is, from whichever manager leads.
    pub fn status(&self, name: &str) -> Result<StatusT> {
        let options = self.options(name)?;
        role::block_on(name, Client::ask_status(options))
    }

    /// Runs `work` with an endpoint on this thread, for who asks certain processes.
    pub fn with_node<T: 'static, F>(&self, name: &str, work: impl FnOnce(Node) -> F + 'static) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let secret = role::secret(self.secret_file.as_deref())?;
        role::block_on(name, async move {
            let node = role::endpoint(Role::Client, secret)?;
            let result = work(node.clone()).await;
            node.shutdown().await;
            result
        })
    }

    /// Runs `work` with a client on this thread, and closes the client: what `work` wrote is durable afterwards.
    pub fn with_client<T: 'static, F>(
        &self,
        name: &str,
        work: impl FnOnce(Client) -> F + 'static,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let options = self.options(name)?;
        role::block_on(name, async move {
            let client = Client::connect(options).await?;
            let result = work(client.clone()).await;
            let closed = client.close().await;
            let value = result?;
            closed?;
            Ok(value)
        })
    }
}
