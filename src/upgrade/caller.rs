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

#[cfg(test)]
mod tests {
    use http::Extensions;

    use super::*;

    #[test]
    fn a_caller_is_in_the_groups_it_was_given_and_in_no_other() {
        let caller = Caller::new("jane", ["dev", "system:authenticated"]);
        assert_eq!(caller.name, "jane");
        assert!(caller.is_in("dev") && caller.is_in("system:authenticated"));
        for group in ["", "de", "devs", "Dev", "system:masters", "jane"] {
            assert!(!caller.is_in(group), "{group:?}");
        }
        assert!(caller.uid.is_empty() && caller.extra.is_empty());
    }

    #[test]
    fn who_nobody_vouches_for_is_named_as_kubernetes_names_it() {
        let caller = Caller::anonymous();
        assert_eq!(caller.name, "system:anonymous");
        assert_eq!(caller.groups, ["system:unauthenticated"]);
        assert!(!caller.is_in("system:authenticated"));
    }

    #[test]
    fn caller_and_address_ride_in_the_request_side_by_side() {
        let mut extensions = Extensions::new();
        extensions.insert(Caller::new("jane", ["dev"]));
        extensions.insert(ClientAddr([192, 0, 2, 9].into()));
        assert_eq!(extensions.get(), Some(&Caller::new("jane", ["dev"])));
        assert_eq!(extensions.get(), Some(&ClientAddr(IpAddr::from([192, 0, 2, 9]))));
    }
}
