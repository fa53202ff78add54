//! A lab with a gateway in front: API server and kubelet are the existing cluster, and clients talk to the gateway.

use std::{ffi::OsString, fs, path::PathBuf};

use super::{
    Outcome, Scratch,
    http::url,
    lab::{Lab, PODS, Settings, Topology, cluster, port_in, start, start_at, write},
    process::Process,
};

/// What a gateway needs at its cluster, and no more; and somebody who may look at Pods, for tests.
const ROLES: &str = r#"apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: gateway}
rules:
  - {apiGroups: [""], resources: [pods, nodes], verbs: [get, list, watch]}
  - {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
  - {apiGroups: [authorization.k8s.io], resources: [subjectaccessreviews], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: gateway}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: gateway}
subjects: [{kind: User, name: gateway}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: viewer}
rules: [{apiGroups: [""], resources: [pods, pods/exec], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: viewer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: viewer}
subjects: [{kind: User, name: viewer}]
"#;

/// Token, user, uid, groups.
const TOKENS: &str = "the-token-of-admin,admin,admin,\"system:masters\"
the-token-of-viewer,viewer,viewer
the-token-of-gateway,gateway,gateway
";

/// The API server of the existing cluster.
#[derive(Debug)]
pub struct Behind {
    pub apiserver: Process,
    always: Vec<OsString>,
    manifest: PathBuf,
}

impl Behind {
    /// Where it listens.
    pub fn url(&self) -> Outcome<String> {
        url(&self.apiserver)
    }
}

impl Lab {
    /// Two processes that know nothing of a gateway, and one in front of them. All serve with certificates of one CA, so
    /// that one kubeconfig will do.
    pub(super) async fn start_behind_gateway(settings: Settings<'_>) -> Outcome<Self> {
        let scratch = Scratch::new("gateway");
        let data = scratch.dir("cluster");
        write(&data.join("tokens.csv"), TOKENS)?;
        let manifest = scratch.path().join("cluster.yaml");
        write(&manifest, &format!("{PODS}---\n{ROLES}---\n{}", settings.objects))?;
        let always: Vec<OsString> =
            vec!["--data-dir".into(), data.clone().into(), "--manifest".into(), manifest.clone().into()];
        let always: Vec<OsString> = always.into_iter().chain(settings.cluster.iter().map(OsString::from)).collect();
        let apiserver = start("apiserver", &always, &[]).await?;
        let kubelet = start("kubelet", &["--data-dir".into(), data.clone().into()], settings.kubelet).await?;
        let behind = Behind { apiserver, always, manifest };

        let own = scratch.path().join("gateways.kubeconfig");
        write(&own, &kubeconfig(&data, "gateway")?)?;
        let file = |name: &str| -> OsString { data.join(name).into() };
        let always: Vec<OsString> = [
            ("--data-dir", scratch.dir("gateway").into()),
            ("--kubeconfig", own.into()),
            ("--tls-cert-file", file("apiserver.crt")),
            ("--tls-private-key-file", file("apiserver.key")),
            ("--kubelet-certificate-authority", file("ca.crt")),
            ("--kubelet-client-certificate", file("apiserver-kubelet-client.crt")),
            ("--kubelet-client-key", file("apiserver-kubelet-client.key")),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.into(), value])
        .collect();
        let gateway = start("apiserver", &always, settings.apiserver).await?;
        let users = scratch.path().join("users.kubeconfig");
        let text = fs::read_to_string(data.join("kubeconfig")).map_err(|error| error.to_string())?;
        write(&users, &text.replace(&behind.url()?, &url(&gateway)?))?;
        Ok(Self {
            topology: Topology::Gateway,
            apiserver: gateway,
            kubelet: Some(kubelet),
            kubeconfig: users,
            data,
            scratch,
            always,
            behind: Some(behind),
        })
    }

    /// The cluster's API server, behind the gateway.
    pub fn behind(&mut self) -> &mut Behind {
        self.behind.as_mut().expect("this lab has a gateway")
    }

    /// Starts the cluster's API server again, at the port where it was. It knows the Node from the beginning, as a real
    /// one does, whose objects outlive it.
    pub async fn restart_behind(&mut self) -> Outcome {
        let kubelet = self.kubelet_address().port();
        let behind = self.behind();
        write(&behind.manifest, &format!("{}---\n{ROLES}", cluster(kubelet)))?;
        let address = port_in(&behind.url()?).map(|port| format!("127.0.0.1:{port}")).ok_or("no port")?;
        behind.apiserver = start_at("apiserver", &address, &behind.always, &[]).await?;
        Ok(())
    }
}

/// The cluster's kubeconfig, of one of its users.
fn kubeconfig(data: &std::path::Path, user: &str) -> Outcome<String> {
    let text = fs::read_to_string(data.join("kubeconfig")).map_err(|error| error.to_string())?;
    let mut config: serde_json::Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    config["current-context"] = user.into();
    Ok(config.to_string())
}
