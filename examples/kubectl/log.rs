//! klog's lines on stderr, as many as `-v` asks for. Never what a stream carries, a command or a token.

use std::{
    fmt,
    io::{self, Write as _},
    process,
    sync::atomic::{AtomicU8, Ordering},
};

use time::OffsetDateTime;

static LEVEL: AtomicU8 = AtomicU8::new(0);

pub(crate) fn set(level: u8) {
    LEVEL.store(level, Ordering::Relaxed);
}

/// Writes a line at this level.
pub(crate) fn line(level: u8, file: &str, said: fmt::Arguments<'_>) {
    if LEVEL.load(Ordering::Relaxed) >= level {
        write('I', file, said);
    }
}

/// Writes an error that does not end the program.
pub(crate) fn error(file: &str, said: fmt::Arguments<'_>) {
    write('E', file, said);
}

/// Date and time in UTC, process, who says it. A terminal in raw mode gets its carriage return too.
fn write(severity: char, file: &str, said: fmt::Arguments<'_>) {
    let now = OffsetDateTime::now_utc();
    let (month, day) = (u8::from(now.month()), now.day());
    let (hour, minute, second) = now.to_hms();
    let clock = format!("{month:02}{day:02} {hour:02}:{minute:02}:{second:02}.{:06}", now.microsecond());
    let end = if super::terminal::is_raw() { "\r" } else { "" };
    // If nobody reads it, that ends no stream.
    let _ = writeln!(io::stderr(), "{severity}{clock} {:7} {file}] {said}{end}", process::id());
}

/// A line of klog's: `klog!(7, "exec.rs", "…")`.
macro_rules! klog {
    ($level:expr, $($said:tt)+) => {
        $crate::kubectl::log::line($level, file!().rsplit('/').next().unwrap_or_default(), format_args!($($said)+))
    };
}
pub(crate) use klog;
