//! `metav1.Status` as Go writes it: field order, omitted fields, HTML-escaped.

use serde::{Deserialize, Serialize};

/// A Kubernetes `Status`, in API responses and on error streams.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) api_version: Option<String>,
    #[serde(skip_deserializing)]
    pub(crate) metadata: Metadata,
    pub(crate) status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) details: Option<Details>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) code: u16,
}

/// Always empty: written as `{}`, never read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Metadata {}

/// What the status is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) kind: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) causes: Vec<Cause>,
    /// Of 429; in what others send it is of no interest.
    #[serde(skip_serializing_if = "is_zero", skip_deserializing)]
    pub(crate) retry_after_seconds: u32,
}

/// One cause; `reason` is its type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Cause {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

impl Status {
    /// The JSON that Go's encoder would write: `<`, `>`, `&` escaped, no newline at the end.
    pub(crate) fn to_json(&self) -> String {
        let json = serde_json::to_string(self).expect("a Status has string keys only");
        // These three occur only inside strings.
        json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_in_gos_order_and_html_is_escaped() {
        let status = Status {
            status: "Failure".into(),
            message: "a<b>&c".into(),
            reason: "NonZeroExitCode".into(),
            details: Some(Details {
                causes: vec![Cause { reason: "ExitCode".into(), message: "3".into() }],
                ..Details::default()
            }),
            ..Status::default()
        };
        assert_eq!(
            status.to_json(),
            r#"{"metadata":{},"status":"Failure","message":"a\u003cb\u003e\u0026c","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#
        );
    }
}
