//! Values of flags that have a grammar of their own.

use std::time::Duration;

use super::failure::Failure;

/// `[[namespace/]pod:]path`.
#[derive(Debug)]
pub(crate) struct FilePlace {
    pub(crate) namespace: Option<String>,
    pub(crate) pod: Option<String>,
    pub(crate) path: String,
}

/// Reads a file specification of `cp`.
pub(crate) fn file_place(text: &str) -> Result<FilePlace, Failure> {
    let wrong = || Failure::error("filespec must match the canonical format: [[namespace/]pod:]file/path");
    let Some((pod, path)) = text.split_once(':') else {
        return Ok(FilePlace { namespace: None, pod: None, path: text.to_owned() });
    };
    let (namespace, pod) = match pod.split_once('/') {
        None => (None, pod),
        Some((namespace, pod)) => (Some(namespace.to_owned()), pod),
    };
    if pod.is_empty() || pod.contains('/') {
        return Err(wrong());
    }
    Ok(FilePlace { namespace, pod: Some(pod.to_owned()), path: path.to_owned() })
}

/// Go's durations, such as `1m0s` or `500ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("time: invalid duration {text:?}");
    let mut rest = text;
    let mut sum = Duration::ZERO;
    if text == "0" {
        return Ok(sum);
    }
    while !rest.is_empty() {
        let digits = rest.find(|char: char| !char.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u32 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest.find(|char: char| char.is_ascii_digit()).unwrap_or(rest.len());
        let one = match &rest[..unit] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(wrong()),
        };
        sum = one.checked_mul(number).and_then(|more| sum.checked_add(more)).ok_or_else(wrong)?;
        rest = &rest[unit..];
    }
    if text.is_empty() { Err(wrong()) } else { Ok(sum) }
}
