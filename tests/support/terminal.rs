//! A program on a real pty, whose screen can be read and whose size can change.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    thread,
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags, open},
    process::Signal,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcgetattr, tcsetwinsize},
};
use tokio::{
    process::{Child, Command},
    sync::watch,
    time::timeout,
};

use super::Outcome;

/// Rows and columns.
pub type Size = (u16, u16);

/// A pty and the program that has it as its controlling terminal.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    child: Child,
    screen: watch::Receiver<String>,
}

impl Terminal {
    /// Opens a pty of `size` and starts on its other end what `command` makes.
    pub fn start(size: Size, command: impl FnOnce(&OwnedFd) -> Outcome<Command>) -> Outcome<Self> {
        let (master, other) = pair(size).map_err(|error| format!("no pty: {error}"))?;
        let child = command(&other)?.spawn().map_err(|error| error.to_string())?;
        drop(other);
        let mut reader = master.try_clone().map_err(|error| error.to_string())?;
        let (sender, screen) = watch::channel(String::new());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO is how Linux says that the other end is closed.
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                sender.send_modify(|text| text.push_str(&String::from_utf8_lossy(&buffer[..length])));
            }
        });
        Ok(Self { master, child, screen })
    }

    /// How the terminal is set: equal texts mean equal settings.
    pub fn settings(&self) -> Outcome<String> {
        let settings = tcgetattr(&self.master).map_err(|error| error.to_string())?;
        Ok(format!("{settings:?}"))
    }

    /// Types these keys.
    pub fn keys(&mut self, keys: &str) -> Outcome {
        self.master.write_all(keys.as_bytes()).map_err(|error| error.to_string())
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: Signal) {
        super::process::signal(&self.child, signal);
    }

    /// What was shown so far.
    pub fn screen(&self) -> String {
        self.screen.borrow().clone()
    }

    /// Types a line.
    pub fn types(&mut self, line: &str) -> Outcome {
        self.master.write_all(format!("{line}\r").as_bytes()).map_err(|error| error.to_string())
    }

    /// Changes the size; the kernel tells the program by SIGWINCH.
    pub fn resize(&self, size: Size) -> Outcome {
        tcsetwinsize(&self.master, winsize(size)).map_err(|error| error.to_string())
    }

    /// Waits until `part` was shown.
    pub async fn shows(&self, part: &str) -> Outcome {
        let mut screen = self.screen.clone();
        let why = match timeout(Duration::from_secs(30), screen.wait_for(|text| text.contains(part))).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(_)) => "the program ended",
            Err(_) => "time ran out",
        };
        Err(format!("{why} before the terminal showed {part:?}; it shows:\n{}", self.screen.borrow().as_str()))
    }

    /// Waits for the exit code.
    pub async fn exit_code(mut self) -> Outcome<i32> {
        self.ends().await
    }

    /// Waits for the exit code; the terminal can be looked at then.
    pub async fn ends(&mut self) -> Outcome<i32> {
        match timeout(Duration::from_secs(30), self.child.wait()).await {
            Ok(Ok(status)) => status.code().ok_or_else(|| format!("ended by {status}")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("still runs; the terminal shows:\n{}", self.screen.borrow().as_str())),
        }
    }
}

fn pair(size: Size) -> rustix::io::Result<(File, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    tcsetwinsize(&master, winsize(size))?;
    let name = ptsname(&master, Vec::new())?;
    let other = open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((File::from(master), other))
}

fn winsize((rows, columns): Size) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
