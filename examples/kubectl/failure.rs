//! What is said on stderr, and the exit code.

use std::{
    error::Error,
    io::{self, Write as _},
};

use serde_json::Value;
use tower_kube_streaming::{client::ExecuteError, remote_command::Exit};

/// Why a command failed, in kubectl's words.
#[derive(Debug)]
pub(crate) struct Failure {
    text: String,
    code: i32,
}

impl Failure {
    /// `error: …`, exit code 1.
    pub(crate) fn error(why: impl AsRef<str>) -> Self {
        Self::verbatim(format!("error: {}", why.as_ref()), 1)
    }

    pub(crate) fn verbatim(text: String, code: i32) -> Self {
        Self { text, code }
    }

    /// Nothing is said.
    pub(crate) fn silent(code: i32) -> Self {
        Self { text: String::new(), code }
    }

    /// What would be said.
    pub(crate) fn into_text(self) -> String {
        self.text
    }

    /// Says it. Returns the exit code.
    pub(crate) fn report(self) -> i32 {
        if !self.text.is_empty() {
            // `eprintln` panics where nobody reads, and with it went the exit code.
            let _ = writeln!(io::stderr(), "{}", self.text);
        }
        self.code
    }

    /// A server's refusal of a plain request.
    pub(crate) fn refused(code: u16, status: &Value) -> Self {
        let field = |name| status.get(name).and_then(Value::as_str).unwrap_or_default();
        let message = match field("message") {
            "" => "the server could not be understood",
            message => message,
        };
        let text = match field("reason") {
            "Unauthorized" => format!("error: You must be logged in to the server ({message})"),
            "" => format!("Error from server ({code}): {message}"),
            reason => format!("Error from server ({reason}): {message}"),
        };
        Self::verbatim(printable(&text), 1)
    }

    /// A connection that could not be made.
    pub(crate) fn unreachable(server: &str, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            let ask = "did you specify the right host or port?";
            return Self::verbatim(format!("The connection to the server {server} was refused - {ask}"), 1);
        }
        Self::verbatim(format!("Unable to connect to the server: {}", printable(&error.to_string())), 1)
    }

    /// A stream that could not be opened, or broke.
    pub(crate) fn stream(server: &str, error: &ExecuteError) -> Self {
        match error {
            ExecuteError::Dial(error) => Self::unreachable(server, error),
            error => Self::error(chain(error)),
        }
    }
}

/// An exit code other than 0 is a failure here.
pub(crate) fn of_exit(exit: &Exit) -> Result<(), Failure> {
    match exit {
        Exit::Success => Ok(()),
        Exit::Code(code) => {
            Err(Failure::verbatim(format!("command terminated with exit code {code}"), i32::from(*code)))
        }
        other => Err(Failure::error(format!("the command ended in an unknown way: {other:?}"))),
    }
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    printable(&text)
}

/// Text of a server that cannot drive a terminal.
pub(crate) fn printable(text: &str) -> String {
    let shown = |char: char| match char {
        '\n' | '\t' => char.to_string(),
        char if char.is_control() => char.escape_default().to_string(),
        char => char.to_string(),
    };
    text.chars().map(shown).collect()
}
