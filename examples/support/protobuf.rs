//! Reviews in Kubernetes' protobuf: kubectl 1.33 and newer send them so, and take JSON for an answer.
//!
//! Field numbers are upstream's (k8s.io/api authorization/v1 generated.proto, apimachinery runtime generated.proto). What
//! no rule of RBAC asks about is passed over: metadata, version, selectors, extra.

use serde_json::{Map, Value};

pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// Kubernetes puts this before a message that says its own type.
const MAGIC: &[u8] = b"k8s\0";

pub type Field = (u64, &'static str, Shape);

#[derive(Clone, Copy, Debug)]
pub enum Shape {
    Text,
    Texts,
    Message(&'static [Field]),
}

const TYPE: &[Field] = &[(1, "apiVersion", Shape::Text), (2, "kind", Shape::Text)];
/// What a review consists of.
pub type Review = &'static [Field];
/// A question about rights. A `SelfSubjectAccessReview` has the first two.
pub const ACCESS: Review = &[(2, "spec", Shape::Message(SPEC))];
/// A question about a token; a `SelfSubjectReview` has none.
pub const TOKEN: Review = &[(2, "spec", Shape::Message(&[(1, "token", Shape::Text), (2, "audiences", Shape::Texts)]))];
const SPEC: &[Field] = &[
    (1, "resourceAttributes", Shape::Message(RESOURCE)),
    (2, "nonResourceAttributes", Shape::Message(NON_RESOURCE)),
    (3, "user", Shape::Text),
    (4, "groups", Shape::Texts),
    (6, "uid", Shape::Text),
];
const RESOURCE: &[Field] = &[
    (1, "namespace", Shape::Text),
    (2, "verb", Shape::Text),
    (3, "group", Shape::Text),
    (5, "resource", Shape::Text),
    (6, "subresource", Shape::Text),
    (7, "name", Shape::Text),
];
const NON_RESOURCE: &[Field] = &[(1, "path", Shape::Text), (2, "verb", Shape::Text)];

/// The review as its JSON would be; `None` if it is none.
pub fn review(body: &[u8], shape: Review) -> Option<Value> {
    let (mut object, mut review) = (Map::new(), None);
    for field in (Fields { rest: body.strip_prefix(MAGIC)? }) {
        match field? {
            (1, bytes) => object = message(bytes, TYPE)?,
            (2, bytes) => review = Some(message(bytes, shape)?),
            _ => {}
        }
    }
    object.extend(review?);
    Some(object.into())
}

fn message(bytes: &[u8], shape: &[Field]) -> Option<Map<String, Value>> {
    let mut object = Map::new();
    for field in (Fields { rest: bytes }) {
        let (number, bytes) = field?;
        let Some((_, name, shape)) = shape.iter().find(|(known, ..)| *known == number) else { continue };
        match shape {
            Shape::Text => drop(object.insert((*name).to_owned(), text(bytes)?)),
            Shape::Message(shape) => drop(object.insert((*name).to_owned(), message(bytes, shape)?.into())),
            Shape::Texts => {
                let list = object.entry(*name).or_insert_with(|| Value::Array(Vec::new()));
                list.as_array_mut()?.push(text(bytes)?);
            }
        }
    }
    Some(object)
}

fn text(bytes: &[u8]) -> Option<Value> {
    std::str::from_utf8(bytes).ok().map(Value::from)
}

/// The fields that have a length, with their numbers; `None` where the message is malformed, which ends it.
struct Fields<'b> {
    rest: &'b [u8],
}

impl<'b> Iterator for Fields<'b> {
    type Item = Option<(u64, &'b [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            match self.field() {
                Some(None) => {}
                Some(Some(field)) => return Some(Some(field)),
                None => {
                    self.rest = &[];
                    return Some(None);
                }
            }
        }
        None
    }
}

impl<'b> Fields<'b> {
    /// One field; inside is `None` where it has no length.
    fn field(&mut self) -> Option<Option<(u64, &'b [u8])>> {
        let key = self.varint()?;
        match key & 7 {
            0 => self.varint().map(|_| None),
            1 => self.take(8).map(|_| None),
            2 => {
                let length = self.varint()?;
                Some(Some((key >> 3, self.take(length)?)))
            }
            5 => self.take(4).map(|_| None),
            _ => None,
        }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(first & 0x7F) << shift;
            if first & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: u64) -> Option<&'b [u8]> {
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(length).ok()?)?;
        self.rest = rest;
        Some(taken)
    }
}
