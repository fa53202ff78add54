//! What a URL of the Kubernetes API names: `/api/v1/…` or `/apis/GROUP/VERSION/…`, and behind it
//! `[namespaces/{namespace}/]KIND[/{name}[/SUBRESOURCE]]`.

use axum::extract::{FromRequestParts, RawPathParams};
use http::request::Parts;
use tower_kube_streaming::upgrade::Refusal;

use super::{
    api::Failure,
    objects::{Key, Kind},
};

/// Taken from a request that a route has matched.
#[derive(Clone, Debug)]
pub struct At {
    pub kind: Kind,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

impl At {
    pub fn key(&self) -> Key {
        Key {
            kind: self.kind,
            namespace: self.namespace.clone().unwrap_or_default(),
            name: self.name.clone().unwrap_or_default(),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for At {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let params = RawPathParams::from_request_parts(parts, state).await;
        // Without its namespace a path would name all of them.
        let params = params.map_err(|_| Refusal::bad_request("the path is not UTF-8"))?;
        let param = |wanted| {
            let mut params = params.iter();
            params.find(|(name, _)| *name == wanted).map(|(_, value)| value.to_owned())
        };
        let (namespace, name) = (param("namespace"), param("name"));
        let mut words = parts.uri.path().split('/').skip(1);
        let version = if words.next() == Some("apis") { 2 } else { 1 };
        let mut words = words.skip(version + if namespace.is_some() { 2 } else { 0 });
        let plural = words.next();
        let kind = Kind::ALL.into_iter().find(|kind| Some(kind.plural()) == plural);
        let kind = kind.ok_or_else(|| Refusal::bad_request("the path names no kind"))?;
        let subresource = words.nth(1).map(str::to_owned);
        Ok(Self { kind, namespace, name, subresource })
    }
}
