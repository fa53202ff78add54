//! What the error stream says: how the command ended.

use crate::{
    BoxError,
    remote_command::{Exit, Version},
    status::{Cause, Details, Status},
};

const NON_ZERO_EXIT_CODE: &str = "NonZeroExitCode";
const EXIT_CODE: &str = "ExitCode";

/// Bytes of an error stream that are read at most; what follows cannot be a sane `Status`.
pub(crate) const MAX_STATUS: usize = 64 * 1024;

/// What the bytes of an error stream mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command has ended.
    Exited(Exit),
    /// It could not be run, or watched, to its end.
    Failed(String),
    /// What arrived is no `Status`: cut off, empty, or somebody else's words.
    Invalid(String),
}

/// The bytes that tell a client of `version` how the command ended. Empty for a success before v4.
#[must_use]
pub fn encode(version: Version, result: &Result<Exit, BoxError>) -> String {
    let status = match result {
        Ok(Exit::Success) => success(),
        Ok(Exit::Code(code)) => non_zero(*code),
        Err(error) => internal(&error.to_string()),
    };
    if version.has_status() {
        return status.to_json();
    }
    status.message
}

/// The `Status` of a session that failed on its way, for a client of `version`.
#[must_use]
pub fn encode_failure(version: Version, why: &str) -> String {
    let status = internal(why);
    if version.has_status() { status.to_json() } else { status.message }
}

/// Reads a whole error stream of v4 or v5.
///
/// The rules are client-go's `errorDecoderV4`, but an empty stream is [`Outcome::Invalid`]: a status that got lost is
/// not a success.
#[must_use]
pub fn decode(bytes: &[u8]) -> Outcome {
    let status: Status = match serde_json::from_slice(bytes) {
        Ok(status) => status,
        Err(error) => {
            return Outcome::Invalid(format!(
                "error stream protocol error: {error} in {:?}",
                String::from_utf8_lossy(bytes)
            ));
        }
    };
    match status.status.as_str() {
        "Success" => Outcome::Exited(Exit::Success),
        // A known bug for the fuzz target `status_json` to find: a status that is not there is a success.
        #[cfg(planted)]
        "" if status.message.is_empty() => Outcome::Exited(Exit::Success),
        "Failure" if status.reason == NON_ZERO_EXIT_CODE => exit_code(&status),
        "Failure" => Outcome::Failed(status.message),
        _ => Outcome::Invalid("error stream protocol error: unknown error".into()),
    }
}

fn exit_code(status: &Status) -> Outcome {
    let Some(details) = &status.details else {
        return Outcome::Invalid("error stream protocol error: details must be set".into());
    };
    let Some(cause) = details.causes.iter().find(|cause| cause.reason == EXIT_CODE) else {
        return Outcome::Invalid("error stream protocol error: no ExitCode cause given".into());
    };
    match cause.message.parse() {
        // A failure with the code of a success: whoever sent it, it is not told as a success.
        Ok(0) => Outcome::Invalid("error stream protocol error: exit code 0 in a failure".into()),
        Ok(code) => Outcome::Exited(Exit::Code(code)),
        Err(_) => Outcome::Invalid(format!("error stream protocol error: invalid exit code value {:?}", cause.message)),
    }
}

fn success() -> Status {
    Status { status: "Success".into(), ..Status::default() }
}

fn non_zero(code: u8) -> Status {
    Status {
        status: "Failure".into(),
        message: format!("command terminated with non-zero exit code: command terminated with exit code {code}"),
        reason: NON_ZERO_EXIT_CODE.into(),
        details: Some(Details {
            causes: vec![Cause { reason: EXIT_CODE.into(), message: code.to_string() }],
            ..Details::default()
        }),
        ..Status::default()
    }
}

fn internal(why: &str) -> Status {
    Status {
        status: "Failure".into(),
        message: format!("Internal error occurred: {why}"),
        reason: "InternalError".into(),
        details: Some(Details {
            causes: vec![Cause { message: why.into(), ..Cause::default() }],
            ..Details::default()
        }),
        code: 500,
        ..Status::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_reads_back_as_the_exit_it_was_written_for() {
        for exit in [Exit::Success, Exit::Code(1), Exit::Code(137), Exit::Code(255)] {
            let json = encode(Version::V4, &Ok(exit.clone()));
            assert_eq!(decode(json.as_bytes()), Outcome::Exited(exit));
        }
    }

    #[test]
    fn an_empty_or_torn_status_is_never_a_success() {
        for torn in ["", "{", "{}", r#"{"status":"Succ"}"#, r#"{"status":"Failure","reason":"NonZeroExitCode"}"#] {
            assert!(matches!(decode(torn.as_bytes()), Outcome::Invalid(_)), "{torn}");
        }
    }

    #[test]
    fn a_failure_with_exit_code_zero_is_no_success() {
        let status = r#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"0"}]}}"#;
        assert!(matches!(decode(status.as_bytes()), Outcome::Invalid(_)));
    }

    #[test]
    fn before_v4_success_is_silence_and_failure_is_text() {
        assert_eq!(encode(Version::V3, &Ok(Exit::Success)), "");
        assert_eq!(
            encode(Version::V2, &Ok(Exit::Code(7))),
            "command terminated with non-zero exit code: command terminated with exit code 7"
        );
    }
}
