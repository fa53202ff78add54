//! A lab over plain HTTP: sockets that tests can cut, slow down and count, and clients without TLS.

use std::net::SocketAddr;

use super::{
    Outcome, Scratch,
    lab::{Lab, Topology, cluster, example, port_in, write},
    process::Process,
};

impl Lab {
    /// API server and kubelet in two processes, without TLS.
    pub async fn plain() -> Outcome<Self> {
        let mut kubelet = example("kubelet");
        let kubelet = Process::start("kubelet", kubelet.args(["--listen", "127.0.0.1:0", "--insecure"]))?;
        kubelet.ready().await?;
        let said = kubelet.stdout.text();
        let port = port_in(&said).ok_or_else(|| format!("kubelet's stdout names no port:\n{said}"))?;
        let mut lab = Self::before(port).await?;
        lab.kubelet = Some(kubelet);
        Ok(lab)
    }

    /// An API server whose only kubelet is at that port of this host.
    pub async fn before(kubelet_port: u16) -> Outcome<Self> {
        Self::before_with(kubelet_port, &[]).await
    }

    /// As [`before`](Self::before), with more flags for the API server.
    pub async fn before_with(kubelet_port: u16, flags: &[&str]) -> Outcome<Self> {
        let scratch = Scratch::new("plain");
        let data = scratch.dir("data");
        let manifest = scratch.path().join("cluster.yaml");
        write(&manifest, &cluster(kubelet_port))?;
        let mut command = example("apiserver");
        command.args(["--listen", "127.0.0.1:0", "--insecure", "--kubelet-insecure-http"]);
        command.arg("--data-dir").arg(&data).arg("--manifest").arg(&manifest).args(flags);
        let apiserver = Process::start("apiserver", &mut command)?;
        apiserver.ready().await?;
        let kubeconfig = data.join("kubeconfig");
        Ok(Self { topology: Topology::TwoProcesses, apiserver, kubelet: None, kubeconfig, scratch })
    }

    /// Where the API server listens.
    pub fn address(&self) -> SocketAddr {
        let port = port_in(&self.apiserver.stdout.text()).expect("a ready API server has said where it listens");
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// Where the kubelet listens.
    pub fn kubelet_address(&self) -> SocketAddr {
        let kubelet = self.kubelet.as_ref().expect("this lab has a kubelet");
        let port = port_in(&kubelet.stdout.text()).expect("a ready kubelet has said where it listens");
        SocketAddr::from(([127, 0, 0, 1], port))
    }
}
