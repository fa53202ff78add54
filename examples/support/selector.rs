//! Which objects of a kind are asked for: field and label selectors, as clients write them.

use serde_json::Value;
use tower_kube_streaming::upgrade::Refusal;

use super::{
    at::At,
    objects::{Kind, text},
};

/// Where an object has to be, and what it has to say.
pub struct Selector {
    pub kind: Kind,
    namespace: Option<String>,
    terms: Vec<Term>,
}

/// What stands at a JSON pointer: one of these values, or anything; or else none of these.
struct Term {
    pointer: String,
    test: Test,
}

enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
}

impl Selector {
    /// A selector that is not understood is refused: to ignore it would show too much.
    pub fn parse(at: &At, fields: &str, labels: &str) -> Result<Self, Refusal> {
        let mut terms = Vec::new();
        for term in fields.split(',').filter(|term| !term.is_empty()) {
            let (field, equal, value) = equality(term).ok_or_else(|| not_understood(term))?;
            if !at.kind.selectable().contains(&field) {
                return Err(Refusal::bad_request(format!("field label not supported: {field}")));
            }
            let values = vec![value.to_owned()];
            let test = if equal { Test::In(values) } else { Test::NotIn(values) };
            terms.push(Term { pointer: format!("/{}", field.replace('.', "/")), test });
        }
        for term in requirements(labels) {
            let (label, test) = requirement(term).ok_or_else(|| not_understood(term))?;
            let label = label.replace('~', "~0").replace('/', "~1");
            terms.push(Term { pointer: format!("/metadata/labels/{label}"), test });
        }
        Ok(Self { kind: at.kind, namespace: at.namespace.clone(), terms })
    }

    pub fn takes(&self, object: &Value) -> bool {
        let namespace = text(object, "/metadata/namespace");
        self.namespace.as_deref().is_none_or(|wanted| namespace == Some(wanted))
            && self.terms.iter().all(|term| term.takes(object))
    }
}

impl Term {
    fn takes(&self, object: &Value) -> bool {
        let value = object.pointer(&self.pointer).and_then(Value::as_str);
        let is_one = |values: &[String]| values.iter().any(|wanted| wanted == value.unwrap_or_default());
        match &self.test {
            Test::In(values) => is_one(values),
            Test::NotIn(values) => !is_one(values),
            Test::Exists => value.is_some(),
            Test::Missing => value.is_none(),
        }
    }
}

/// The one name that a field selector asks for.
pub fn exact_name(fields: &str) -> Option<&str> {
    let mut terms = fields.split(',').filter_map(equality);
    terms.find_map(|(field, equal, value)| (equal && field == "metadata.name").then_some(value))
}

/// `a=b`, `a==b` or `a!=b`.
fn equality(term: &str) -> Option<(&str, bool, &str)> {
    let (name, value) = term.split_once('=')?;
    Some(match name.strip_suffix('!') {
        Some(name) => (name.trim(), false, value.trim()),
        None => (name.trim(), true, value.strip_prefix('=').unwrap_or(value).trim()),
    })
}

/// The parts between commas that are in no parentheses.
fn requirements(labels: &str) -> impl Iterator<Item = &str> {
    let mut open = false;
    let parts = labels.split(move |char| {
        open = (open || char == '(') && char != ')';
        char == ',' && !open
    });
    parts.map(str::trim).filter(|term| !term.is_empty())
}

/// `a=b`, `a!=b`, `a in (b, c)`, `a notin (b, c)`, `a` and `!a`.
fn requirement(term: &str) -> Option<(&str, Test)> {
    if let Some(list) = term.strip_suffix(')') {
        let (head, values) = list.split_once('(')?;
        let (label, word) = head.trim().rsplit_once(char::is_whitespace)?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let test = match word {
            "in" => Test::In(values),
            "notin" => Test::NotIn(values),
            _ => return None,
        };
        return Some((label.trim(), test)).filter(|(label, _)| is_label(label));
    }
    let (label, test) = match equality(term) {
        Some((label, true, value)) => (label, Test::In(vec![value.to_owned()])),
        Some((label, false, value)) => (label, Test::NotIn(vec![value.to_owned()])),
        None => match term.strip_prefix('!') {
            Some(label) => (label.trim(), Test::Missing),
            None => (term, Test::Exists),
        },
    };
    Some((label, test)).filter(|(label, _)| is_label(label))
}

fn is_label(label: &str) -> bool {
    !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte))
}

fn not_understood(term: &str) -> Refusal {
    Refusal::bad_request(format!("unable to parse requirement: {term:?}"))
}
