//! Who asks.

use std::{collections::BTreeMap, net::IpAddr};

/// Where a request came from: a request extension that the server's accept loop inserts. `UpgradeProxy` appends it to
/// `X-Forwarded-For`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddr(pub IpAddr);

/// Who asks, as authentication found out. A request extension; a request without one is [`Caller::anonymous`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User name.
    pub name: String,
    /// A string that outlives the name; empty where there is none.
    pub uid: String,
    /// Groups the user is in.
    pub groups: Vec<String>,
    /// What the authenticator knows besides.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Caller {
    /// A caller of that name and those groups.
    pub fn new(name: impl Into<String>, groups: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            name: name.into(),
            uid: String::new(),
            groups: groups.into_iter().map(Into::into).collect(),
            extra: BTreeMap::new(),
        }
    }

    /// Who nobody vouches for.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::new("system:anonymous", ["system:unauthenticated"])
    }

    /// Whether the caller is in that group.
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|of| of == group)
    }
}
