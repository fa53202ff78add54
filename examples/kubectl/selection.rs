//! Which cluster and which user a command line means, of those that its kubeconfigs have.

use std::{
    env,
    io::ErrorKind::NotFound,
    path::{Path, PathBuf},
};

use clap::Args;
use kube::{
    Config,
    config::{
        AuthInfo, Cluster, Context, KubeConfigOptions, Kubeconfig, KubeconfigError, NamedAuthInfo, NamedCluster,
        NamedContext,
    },
};

use super::failure::{Failure, chain};

/// Where kubectl asks if nobody says where: `kubectl proxy` may be there.
const NOWHERE: &str = "http://localhost:8080";

#[derive(Args, Debug)]
pub(crate) struct SelectionFlags {
    /// Path to the kubeconfig file [default: $KUBECONFIG, ~/.kube/config, or the pod's service account].
    #[arg(long, value_name = "FILE", global = true)]
    kubeconfig: Option<String>,
    /// The context of the kubeconfig.
    #[arg(long, value_name = "NAME", global = true)]
    context: Option<String>,
    /// The cluster of the kubeconfig.
    #[arg(long, value_name = "NAME", global = true)]
    cluster: Option<String>,
    /// The user of the kubeconfig.
    #[arg(long, value_name = "NAME", global = true)]
    user: Option<String>,
    /// Address and port of the API server, in place of the kubeconfig's.
    #[arg(short, long, value_name = "URL", global = true)]
    server: Option<String>,
}

/// What is meant.
#[derive(Debug, Default)]
pub(crate) struct Selected {
    /// The names of cluster and user, for messages.
    pub(crate) cluster: String,
    pub(crate) user: String,
    /// File of the cluster's certificate authorities. It is not read yet: the command line may name another.
    pub(crate) ca: Option<String>,
}

impl SelectionFlags {
    /// By kube-rs's loader. Where nothing is said, the service account of this pod.
    pub(crate) async fn load(&self) -> Result<(Config, Selected), Failure> {
        let mut file = self.files()?;
        let server = given(self.server.as_ref());
        let nothing = file.clusters.is_empty() && file.auth_infos.is_empty() && file.contexts.is_empty();
        let pod = if nothing { Config::incluster().ok() } else { None };
        // The service account's token is for its own cluster.
        if let (None, Some(pod)) = (server, &pod) {
            return Ok((pod.clone(), Selected::default()));
        }
        let context = self.context(&file)?;
        let (cluster, mut at) = self.cluster(&mut file, &context)?;
        let (user, auth) = self.user(&mut file, &context)?;
        if let Some(server) = server {
            // As in kubectl: the name is that of the kubeconfig's own server, and another must not pass for it.
            (at.server, at.tls_server_name) = (Some(server.clone()), None);
        }
        if given(at.server.as_ref()).is_none() {
            at.server = Some(NOWHERE.to_owned());
        }
        let ca = if at.certificate_authority_data.is_none() { at.certificate_authority.take() } else { None };
        let namespace = context.namespace.or(pod.map(|pod| pod.default_namespace));
        let one = Context { cluster: cluster.clone(), user: Some(user.clone()), namespace, ..Context::default() };
        let one = Kubeconfig {
            clusters: vec![NamedCluster { name: cluster.clone(), cluster: Some(at), ..NamedCluster::default() }],
            auth_infos: vec![NamedAuthInfo { name: user.clone(), auth_info: Some(auth), ..NamedAuthInfo::default() }],
            contexts: vec![NamedContext { context: Some(one), ..NamedContext::default() }],
            current_context: Some(String::new()),
            ..Kubeconfig::default()
        };
        let config = Config::from_custom_kubeconfig(one, &KubeConfigOptions::default()).await;
        Ok((config.map_err(|error| Failure::error(chain(&error)))?, Selected { cluster, user, ca }))
    }

    /// The file that is named, or those of `KUBECONFIG` that are there, the first to say something first.
    fn files(&self) -> Result<Kubeconfig, Failure> {
        if let Some(path) = given(self.kubeconfig.as_ref()) {
            let missing = || Failure::error(format!("stat {path}: no such file or directory"));
            return read(Path::new(path))?.ok_or_else(missing);
        }
        let list = env::var_os("KUBECONFIG").unwrap_or_default();
        let mut paths: Vec<PathBuf> = env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect();
        if paths.is_empty() {
            paths.extend(env::home_dir().map(|home| home.join(".kube/config")));
        }
        let mut merged = Kubeconfig::default();
        for path in paths {
            if let Some(file) = read(&path)? {
                merged = merged.merge(file).map_err(|error| Failure::error(chain(&error)))?;
            }
        }
        Ok(merged)
    }

    fn context(&self, file: &Kubeconfig) -> Result<Context, Failure> {
        let Some(name) = given(self.context.as_ref()).or(file.current_context.as_ref()) else {
            return Ok(Context::default());
        };
        let context = file.contexts.iter().find(|context| context.name == *name);
        context.and_then(|context| context.context.clone()).ok_or_else(|| {
            let why = "context was not found for specified context";
            Failure::verbatim(format!("Error in configuration: {why}: {name}"), 1)
        })
    }

    /// Only one that the command line names must be there.
    fn cluster(&self, file: &mut Kubeconfig, context: &Context) -> Result<(String, Cluster), Failure> {
        let named = given(self.cluster.as_ref());
        let name = named.unwrap_or(&context.cluster);
        let at = file.clusters.drain(..).find(|it| it.name == *name).and_then(|it| it.cluster);
        if at.is_none() && named.is_some() {
            return Err(Failure::error(format!("no server found for cluster {name:?}")));
        }
        Ok((name.clone(), at.unwrap_or_default()))
    }

    /// As [`Self::cluster`].
    fn user(&self, file: &mut Kubeconfig, context: &Context) -> Result<(String, AuthInfo), Failure> {
        let named = given(self.user.as_ref());
        let name = named.or(context.user.as_ref()).cloned().unwrap_or_default();
        let auth = file.auth_infos.drain(..).find(|it| it.name == name).and_then(|it| it.auth_info);
        if auth.is_none() && named.is_some() {
            return Err(Failure::error(format!("auth info {name:?} does not exist")));
        }
        Ok((name, auth.unwrap_or_default()))
    }
}

/// `None`: it is not there.
fn read(path: &Path) -> Result<Option<Kubeconfig>, Failure> {
    match Kubeconfig::read_from(path) {
        Ok(mut file) => {
            // Said by nobody, for a merge.
            file.current_context = file.current_context.filter(|name| !name.is_empty());
            Ok(Some(file))
        }
        Err(KubeconfigError::ReadConfig(error, _)) if error.kind() == NotFound => Ok(None),
        Err(error) => Err(Failure::error(format!("error loading config file {path:?}: {}", chain(&error)))),
    }
}

/// As in kubectl an empty value is none.
pub(crate) fn given(value: Option<&String>) -> Option<&String> {
    value.filter(|value| !value.is_empty())
}
