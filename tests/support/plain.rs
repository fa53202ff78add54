//! A lab over plain HTTP: sockets that tests can cut, slow down and count, and clients without TLS.

use std::{ffi::OsString, net::SocketAddr};

use super::{
    Outcome, Scratch,
    lab::{Lab, Topology, cluster, port_in, start, write},
};

impl Lab {
    /// API server and kubelet in two processes, without TLS.
    pub async fn plain() -> Outcome<Self> {
        let kubelet = start("kubelet", &["--insecure".into()], &[]).await?;
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
        let mut always: Vec<OsString> = vec!["--data-dir".into(), data.clone().into()];
        always.extend(["--insecure".into(), "--kubelet-insecure-http".into(), "--manifest".into(), manifest.into()]);
        let apiserver = start("apiserver", &always, flags).await?;
        let (topology, kubeconfig) = (Topology::TwoProcesses, data.join("kubeconfig"));
        Ok(Self { topology, apiserver, kubelet: None, kubeconfig, data, scratch, always, behind: None })
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
