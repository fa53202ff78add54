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

/// Go's booleans.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    }
}

/// Go's durations, such as `1m0s` or `1.5h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("time: invalid duration {text:?}");
    let mut rest = text;
    let mut sum = Duration::ZERO;
    if text == "0" {
        return Ok(sum);
    }
    let is_number = |char: char| char.is_ascii_digit() || char == '.';
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|char| !is_number(char)).unwrap_or(rest.len()));
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let (unit, after) = after.split_at(after.find(is_number).unwrap_or(after.len()));
        let one = match unit {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            unit => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
        };
        let more = Duration::try_from_secs_f64(number * one).map_err(|_| wrong())?;
        sum = sum.checked_add(more).ok_or_else(wrong)?;
        rest = after;
    }
    // Go counts nanoseconds in 63 bits.
    if text.is_empty() || i64::try_from(sum.as_nanos()).is_err() { Err(wrong()) } else { Ok(sum) }
}

/// Refuses to wait for no time at all, as `command`.
pub(crate) fn must_wait(time: Duration, command: &str) -> Result<(), Failure> {
    if time.is_zero() {
        let help = format!("See 'kubectl {command} -h' for help and examples");
        return Err(Failure::error(format!("--pod-running-timeout must be higher than zero\n{help}")));
    }
    Ok(())
}
