//! The kinds of object that the API server keeps, and their names.

use serde_json::Value;

use super::objects::text;

/// The kinds of object there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Node,
    Pod,
    Lease,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Node, Self::Pod, Self::Lease];

    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Lease => "Lease",
        }
    }

    /// As in URLs.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::Lease => "leases",
        }
    }

    /// What kubectl takes for it, too.
    pub fn short(self) -> &'static [&'static str] {
        match self {
            Self::Node => &["no"],
            Self::Pod => &["po"],
            Self::Lease => &[],
        }
    }

    /// API group; empty for the core.
    pub fn group(self) -> &'static str {
        match self {
            Self::Node | Self::Pod => "",
            Self::Lease => "coordination.k8s.io",
        }
    }

    /// Group and version.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Node | Self::Pod => "v1",
            Self::Lease => "coordination.k8s.io/v1",
        }
    }

    /// Group and resource, as errors name it.
    pub fn qualified(self) -> &'static str {
        match self {
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::Lease => "leases.coordination.k8s.io",
        }
    }

    pub fn is_namespaced(self) -> bool {
        self != Self::Node
    }

    /// Whether its status is a resource of its own, which nobody else's change touches.
    pub fn has_status(self) -> bool {
        self != Self::Lease
    }

    /// What a field selector may name, as upstream lets it.
    pub fn selectable(self) -> &'static [&'static str] {
        match self {
            Self::Pod => &["metadata.name", "metadata.namespace", "spec.nodeName", "status.phase"],
            Self::Node | Self::Lease => &["metadata.name", "metadata.namespace"],
        }
    }
}

/// Names one object; a Node's namespace is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn node(name: &str) -> Self {
        Self { kind: Kind::Node, namespace: String::new(), name: name.to_owned() }
    }

    pub fn pod(namespace: &str, name: &str) -> Self {
        Self { kind: Kind::Pod, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub fn of(object: &Value) -> Result<Self, String> {
        let name = text(object, "/metadata/name").ok_or("metadata.name is missing")?;
        let kind = text(object, "/kind").ok_or("kind is missing")?;
        let known = Kind::ALL.into_iter().find(|known| known.name() == kind);
        let kind = known.ok_or_else(|| {
            format!("kind {kind} is not supported; Node, Pod, Lease, Role, ClusterRole and their bindings are")
        })?;
        let namespace = match kind.is_namespaced() {
            true => text(object, "/metadata/namespace").unwrap_or("default"),
            false => "",
        };
        for (field, name) in [("metadata.name", name), ("metadata.namespace", namespace)] {
            if !(is_name(name) || namespace.is_empty() && name.is_empty()) {
                return Err(format!("{field}: Invalid value: {name:?}: must be a lowercase RFC 1123 subdomain"));
            }
        }
        Ok(Self { kind, namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// Bytes of an object's name.
const LONGEST: usize = 253;

/// Whether an object may be called so. Names become parts of URLs and of paths.
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    bytes.len() <= LONGEST && bytes.iter().copied().all(plain) && ends(bytes.first()) && ends(bytes.last())
}
