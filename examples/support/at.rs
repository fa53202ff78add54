//! What a URL of the Kubernetes API names: `/api/v1[/namespaces/{namespace}]/KIND[/{name}[/SUBRESOURCE]]`.

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
        let mut words = parts.uri.path().split('/').skip(if namespace.is_some() { 5 } else { 3 });
        let kind = if words.next() == Some("nodes") { Kind::Node } else { Kind::Pod };
        let subresource = words.nth(1).map(str::to_owned);
        Ok(Self { kind, namespace, name, subresource })
    }
}
