//! What a command line says in the place of a kubeconfig: who asks, for whom, and whom to trust.

use std::{collections::HashMap, fs::File, io, time::Duration};

use clap::{ArgAction, Args};
use http::Uri;
use kube::{Config, config::AuthInfo};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::{
    failure::{Failure, printable},
    flags::{boolean, duration},
    selection::{Selected, given},
};

/// Time for a whole request, dialling and answer included, where nothing is said.
const REQUEST: Duration = Duration::from_secs(30);

#[derive(Args, Debug)]
pub(crate) struct Overrides {
    /// Bearer token, in place of the kubeconfig's credentials.
    #[arg(long, value_name = "TOKEN", global = true)]
    token: Option<String>,
    /// File of a client certificate, in PEM.
    #[arg(long, value_name = "FILE", global = true)]
    client_certificate: Option<String>,
    /// File of its key.
    #[arg(long, value_name = "FILE", global = true)]
    client_key: Option<String>,
    /// User to act for.
    #[arg(long = "as", value_name = "NAME", global = true)]
    as_user: Option<String>,
    /// Group to act for; again for more.
    #[arg(long, value_name = "NAME", global = true)]
    as_group: Vec<String>,
    /// UID to act for.
    #[arg(long, value_name = "UID", global = true)]
    as_uid: Option<String>,
    /// What else is said of the user to act for, as KEY=VALUE; again for more.
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    as_user_extra: Vec<String>,
    /// File of the certificate authorities to trust, in PEM.
    #[arg(long, value_name = "FILE", global = true)]
    certificate_authority: Option<String>,
    /// Trust any certificate of the server.
    #[arg(long, value_name = "BOOL", global = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = ArgAction::Set, value_parser = boolean)]
    insecure_skip_tls_verify: Option<bool>,
    /// Whom the server's certificate must be for, in place of its host.
    #[arg(long, value_name = "NAME", global = true)]
    tls_server_name: Option<String>,
    /// Proxy to the API server: http, https or socks5.
    #[arg(long, value_name = "URL", global = true)]
    proxy_url: Option<String>,
    /// How long a request that is no stream may take, such as 5, 5s or 2m; 0: for ever.
    #[arg(long, value_name = "TIME", global = true)]
    request_timeout: Option<String>,
}

impl Overrides {
    /// How long a plain request may take.
    pub(crate) fn patience(&self) -> Result<Duration, Failure> {
        let Some(text) = given(self.request_timeout.as_ref()) else { return Ok(REQUEST) };
        let time = match text.parse() {
            Ok(seconds) => Ok(Duration::from_secs(seconds)),
            Err(_) => duration(text),
        };
        match time {
            Ok(Duration::ZERO) => Ok(Duration::MAX),
            Ok(time) => Ok(time),
            Err(_) => Err(Failure::error(
                "Invalid timeout value. Timeout must be a single integer in seconds, or an integer followed by a \
                 corresponding time unit (e.g. 1s | 2m | 3h)",
            )),
        }
    }

    /// Puts what is said in its place. What is wrong is told together, as kubectl does.
    pub(crate) fn apply(&self, config: &mut Config, selected: &Selected) -> Result<(), Failure> {
        let mut wrong = Vec::new();
        self.user(&mut config.auth_info, &selected.user, &mut wrong);
        self.cluster(config, selected, &mut wrong);
        match &wrong[..] {
            [] => Ok(()),
            [one] => Err(Failure::error(one)),
            _ => {
                let all: String = wrong.iter().map(|one| format!("\n* {one}")).collect();
                Err(Failure::verbatim(format!("Error in configuration: {all}"), 1))
            }
        }
    }

    fn cluster(&self, config: &mut Config, selected: &Selected, wrong: &mut Vec<String>) {
        let name = &selected.cluster;
        if let Some(host) = given(self.tls_server_name.as_ref()) {
            config.tls_server_name = Some(host.clone());
        }
        if let Some(proxy) = given(self.proxy_url.as_ref()) {
            match proxy_of(proxy) {
                Ok(uri) => config.proxy_url = Some(uri),
                Err(why) => wrong.push(format!("invalid 'proxy-url' {proxy:?} for cluster {name:?}: {why}")),
            }
        }
        if let Some(insecure) = self.insecure_skip_tls_verify {
            config.accept_invalid_certs = insecure;
        }
        let named = given(self.certificate_authority.as_ref());
        if named.is_some() && self.insecure_skip_tls_verify.is_none() {
            config.accept_invalid_certs = false;
        }
        let Some(path) = named.or(selected.ca.as_ref().filter(|_| self.insecure_skip_tls_verify != Some(true))) else {
            return;
        };
        if config.accept_invalid_certs {
            wrong.push("specifying a root certificates file with the insecure flag is not allowed".to_owned());
            return;
        }
        match File::open(path) {
            Err(error) => wrong.push(unreadable("certificate-authority", path, name, &error)),
            Ok(file) => match CertificateDer::pem_reader_iter(file).collect::<Result<Vec<_>, _>>() {
                Ok(roots) if !roots.is_empty() => {
                    config.root_cert_file = None;
                    config.root_cert = Some(roots.iter().map(|root| root.to_vec()).collect());
                }
                _ => wrong.push("unable to load root certificates: unable to parse bytes as PEM block".to_owned()),
            },
        }
    }

    fn user(&self, auth: &mut AuthInfo, name: &str, wrong: &mut Vec<String>) {
        if let Some(token) = given(self.token.as_ref()) {
            *auth = AuthInfo { token: Some(token.clone().into()), ..without_credentials(auth) };
        }
        if let Some(file) = given(self.client_certificate.as_ref()) {
            // Who shows a certificate asks no plug-in.
            auth.exec = None;
            auth.client_certificate = Some(file.clone());
            auth.client_certificate_data = None;
        }
        if let Some(file) = given(self.client_key.as_ref()) {
            auth.client_key = Some(file.clone());
            auth.client_key_data = None;
        }
        if auth.client_certificate.is_some() || auth.client_certificate_data.is_some() {
            if auth.client_key.is_none() && auth.client_key_data.is_none() {
                let must = "client-key-data or client-key must be specified";
                wrong.push(format!("{must} for {name} to use the clientCert authentication method."));
            }
            let files = [("client-cert", &auth.client_certificate), ("client-key", &auth.client_key)];
            for (what, file) in files.into_iter().filter_map(|(what, file)| Some((what, file.as_ref()?))) {
                if let Err(error) = File::open(file) {
                    wrong.push(unreadable(what, file, name, &error));
                }
            }
        } else {
            // A key alone shows nobody.
            (auth.client_key, auth.client_key_data) = (None, None);
        }
        if let Some(user) = given(self.as_user.as_ref()) {
            auth.impersonate = Some(user.clone());
        }
        if let Some(uid) = given(self.as_uid.as_ref()) {
            auth.impersonate_uid = Some(uid.clone());
        }
        if !self.as_group.is_empty() {
            auth.impersonate_groups = Some(self.as_group.clone());
        }
        let mut extras = HashMap::<String, Vec<String>>::new();
        for (key, value) in self.as_user_extra.iter().filter_map(|extra| extra.split_once('=')) {
            extras.entry(key.to_owned()).or_default().push(value.to_owned());
        }
        if !extras.is_empty() {
            auth.impersonate_user_extra.get_or_insert_default().extend(extras);
        }
        let more = auth.impersonate_uid.is_some()
            || auth.impersonate_groups.as_ref().is_some_and(|groups| !groups.is_empty())
            || auth.impersonate_user_extra.as_ref().is_some_and(|extras| !extras.is_empty());
        if more && auth.impersonate.as_ref().is_none_or(String::is_empty) {
            wrong.push(format!("requesting uid, groups or user-extra for {name} without impersonating a user"));
        }
    }
}

/// Only for whom is asked, which is no credential.
pub(crate) fn without_credentials(auth: &mut AuthInfo) -> AuthInfo {
    AuthInfo {
        impersonate: auth.impersonate.take(),
        impersonate_uid: auth.impersonate_uid.take(),
        impersonate_groups: auth.impersonate_groups.take(),
        impersonate_user_extra: auth.impersonate_user_extra.take(),
        ..AuthInfo::default()
    }
}

fn proxy_of(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
    match uri.scheme_str().unwrap_or_default() {
        "http" | "https" | "socks5" => Ok(uri),
        scheme => Err(format!("unsupported scheme {scheme:?}, must be http, https, or socks5")),
    }
}

fn unreadable(what: &str, path: &str, name: &str, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    };
    printable(&format!("unable to read {what} {path} for {name} due to open {path}: {why}"))
}
