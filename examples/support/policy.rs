//! Roles and their bindings, from manifests. Read strictly: a misspelt `resourceNames` would grant more than was meant.
//! What is malformed, upstream refuses too (pkg/apis/rbac/validation/validation.go).

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::objects::text;

const GROUP: &str = "rbac.authorization.k8s.io";
const VERSION: &str = "rbac.authorization.k8s.io/v1";

/// What there may be in `metadata`, also as a server writes it.
const METADATA: &[&str] = &[
    "annotations",
    "creationTimestamp",
    "finalizers",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "uid",
];

/// What a role allows: verbs on resources, or on URLs that are none.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub non_resource_urls: Vec<String>,
}

/// Whom a binding is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

/// Gives the rules of a role to subjects: in one namespace, or everywhere.
#[derive(Clone, Debug)]
pub struct Binding {
    pub namespace: Option<String>,
    pub name: String,
    pub role: RoleRef,
    pub subjects: Vec<Subject>,
}

/// The role of a binding, which may not be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoleRef {
    ClusterRole(String),
    /// Of the binding's own namespace.
    Role(String),
}

/// All roles and bindings.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    cluster_roles: BTreeMap<String, Vec<Rule>>,
    /// By namespace and name.
    roles: BTreeMap<(String, String), Vec<Rule>>,
    bindings: Vec<Binding>,
}

impl Policy {
    /// Whether a manifest is one of these kinds.
    pub fn takes(document: &Value) -> bool {
        matches!(text(document, "/kind"), Some("Role" | "ClusterRole" | "RoleBinding" | "ClusterRoleBinding"))
    }

    /// Adds a manifest of these kinds.
    pub fn add(&mut self, document: Value) -> Result<(), String> {
        if text(&document, "/apiVersion") != Some(VERSION) {
            return Err(format!("apiVersion must be {VERSION}"));
        }
        let kind = text(&document, "/kind").unwrap_or_default().to_owned();
        let name = text(&document, "/metadata/name").ok_or("metadata.name is missing")?.to_owned();
        let add = if kind.ends_with("Binding") { Self::bind } else { Self::define };
        namespace(&document, matches!(&*kind, "Role" | "RoleBinding"))
            .and_then(|namespace| add(self, document, &name, namespace.as_deref()))
            .map_err(|why| format!("{kind} {name:?}: {why}"))
    }

    fn define(&mut self, document: Value, name: &str, namespace: Option<&str>) -> Result<(), String> {
        let rules = rules(document, namespace.is_some())?;
        let before = match namespace {
            Some(namespace) => self.roles.insert((namespace.to_owned(), name.to_owned()), rules),
            None => self.cluster_roles.insert(name.to_owned(), rules),
        };
        if before.is_none() { Ok(()) } else { Err("there already is one".to_owned()) }
    }

    fn bind(&mut self, document: Value, name: &str, namespace: Option<&str>) -> Result<(), String> {
        let BindingManifest { subjects, role_ref } = read(document)?;
        let role = role_ref.checked(namespace.is_some())?;
        let subjects = subjects.unwrap_or_default().into_iter().map(|subject| subject.checked(namespace));
        let subjects = subjects.collect::<Result<_, _>>()?;
        if self.bindings.iter().any(|there| there.name == name && there.namespace.as_deref() == namespace) {
            return Err("there already is one".to_owned());
        }
        self.bindings.push(Binding { namespace: namespace.map(str::to_owned), name: name.to_owned(), role, subjects });
        Ok(())
    }

    /// The bindings that count for a namespace, the cluster's own first. For the cluster itself it is empty.
    pub fn bindings(&self, namespace: &str) -> impl Iterator<Item = &Binding> {
        let of_cluster = self.bindings.iter().filter(|binding| binding.namespace.is_none());
        let here = move |binding: &&Binding| !namespace.is_empty() && binding.namespace.as_deref() == Some(namespace);
        of_cluster.chain(self.bindings.iter().filter(here))
    }

    /// The rules that a binding gives; `None` if its role is not there.
    pub fn rules(&self, binding: &Binding) -> Option<&[Rule]> {
        let rules = match &binding.role {
            RoleRef::ClusterRole(name) => self.cluster_roles.get(name),
            RoleRef::Role(name) => self.roles.get(&(binding.namespace.clone()?, name.clone())),
        };
        rules.map(Vec::as_slice)
    }
}

/// The namespace in which it counts; `None` where that is everywhere.
fn namespace(document: &Value, namespaced: bool) -> Result<Option<String>, String> {
    // A misspelt one would count in `default`.
    let known = |name: &String| METADATA.contains(&&**name);
    let names = document["metadata"].as_object().into_iter().flat_map(|metadata| metadata.keys());
    if let Some(unknown) = names.into_iter().find(|name| !known(name)) {
        return Err(format!("unknown field `{unknown}` in metadata"));
    }
    match (&document["metadata"]["namespace"], namespaced) {
        (Value::Null, _) => Ok(namespaced.then(|| "default".to_owned())),
        (Value::String(name), true) if !name.is_empty() => Ok(Some(name.clone())),
        (Value::String(_), false) => Err("it counts in all namespaces, so it has none".to_owned()),
        _ => Err("metadata.namespace is no name".to_owned()),
    }
}

/// What is read of a role besides kind and metadata.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoleManifest {
    rules: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BindingManifest {
    subjects: Option<Vec<SubjectManifest>>,
    role_ref: RoleRefManifest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SubjectManifest {
    kind: String,
    api_group: Option<String>,
    name: String,
    namespace: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RoleRefManifest {
    api_group: Option<String>,
    kind: String,
    name: String,
}

fn read<T: DeserializeOwned>(mut document: Value) -> Result<T, String> {
    if let Some(object) = document.as_object_mut() {
        // Read already; labels and what else is in there grants nothing.
        object.retain(|name, _| !matches!(&**name, "apiVersion" | "kind" | "metadata"));
    }
    serde_json::from_value(document).map_err(|error| error.to_string())
}

fn rules(document: Value, namespaced: bool) -> Result<Vec<Rule>, String> {
    let RoleManifest { rules } = read(document)?;
    let rules = rules.unwrap_or_default();
    for (at, rule) in rules.iter().enumerate() {
        rule.check(namespaced).map_err(|why| format!("rules[{at}]: {why}"))?;
    }
    Ok(rules)
}

impl Rule {
    /// In upstream's words (`ValidatePolicyRule`).
    fn check(&self, namespaced: bool) -> Result<(), &'static str> {
        let of_resources = !(self.api_groups.is_empty() && self.resources.is_empty() && self.resource_names.is_empty());
        match self {
            Self { verbs, .. } if verbs.is_empty() => Err("verbs must contain at least one value"),
            Self { non_resource_urls: urls, .. } if !urls.is_empty() => match (namespaced, of_resources) {
                (true, _) => Err("namespaced rules cannot apply to non-resource URLs"),
                (_, true) => Err("rules cannot apply to both regular resources and non-resource URLs"),
                _ => Ok(()),
            },
            Self { api_groups, .. } if api_groups.is_empty() => {
                Err("resource rules must supply at least one api group")
            }
            Self { resources, .. } if resources.is_empty() => Err("resource rules must supply at least one resource"),
            _ => Ok(()),
        }
    }
}

impl SubjectManifest {
    fn checked(self, binding_namespace: Option<&str>) -> Result<Subject, String> {
        let Self { kind, api_group, name, namespace } = self;
        let namespace = namespace.filter(|namespace| !namespace.is_empty());
        let account = kind == "ServiceAccount";
        let group = api_group.as_deref().unwrap_or(if account { "" } else { GROUP });
        if name.is_empty() {
            return Err("subjects: a name is missing".to_owned());
        }
        if group != if account { "" } else { GROUP } {
            return Err(format!("subjects: {kind} {name:?} is not of API group {group:?}"));
        }
        match (&*kind, namespace) {
            ("User", None) => Ok(Subject::User(name)),
            ("Group", None) => Ok(Subject::Group(name)),
            ("User" | "Group", Some(_)) => Err(format!("subjects: {kind} {name:?} has no namespace")),
            ("ServiceAccount", namespace) => {
                let namespace = namespace.or_else(|| binding_namespace.map(str::to_owned));
                let namespace = namespace.ok_or_else(|| format!("subjects: the namespace of {name:?} is missing"))?;
                Ok(Subject::ServiceAccount { namespace, name })
            }
            _ => Err(format!("subjects: kind {kind} is not supported; User, Group and ServiceAccount are")),
        }
    }
}

impl RoleRefManifest {
    fn checked(self, namespaced: bool) -> Result<RoleRef, String> {
        if self.api_group.is_some_and(|group| group != GROUP) {
            return Err(format!("roleRef.apiGroup must be {GROUP}"));
        }
        match &*self.kind {
            _ if self.name.is_empty() => Err("roleRef.name is missing".to_owned()),
            "ClusterRole" => Ok(RoleRef::ClusterRole(self.name)),
            "Role" if namespaced => Ok(RoleRef::Role(self.name)),
            kind => Err(format!("roleRef.kind {kind} is not supported here")),
        }
    }
}
