//! What a process holds, by Linux's word.

use std::{fs, path::PathBuf};

use super::{Outcome, process::Process};

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub descriptors: usize,
    pub threads: usize,
    pub children: usize,
    /// Resident memory.
    pub rss_kib: u64,
}

pub fn held(process: &Process) -> Outcome<Held> {
    let proc = PathBuf::from(format!("/proc/{}", process.id()));
    let list = |name: &str| fs::read_dir(proc.join(name)).map_err(|error| format!("{name}: {error}"));
    let mut children = 0;
    let mut threads = 0;
    for thread in list("task")? {
        let thread = thread.map_err(|error| error.to_string())?;
        threads += 1;
        // A thread may end while we look.
        children += fs::read_to_string(thread.path().join("children")).map_or(0, |all| all.split_whitespace().count());
    }
    let status = fs::read_to_string(proc.join("status")).map_err(|error| error.to_string())?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    Ok(Held { descriptors: list("fd")?.count(), threads, children, rss_kib: rss.ok_or("no VmRSS")? })
}

/// What its descriptors are, for a failure's report.
pub fn descriptors(process: &Process) -> String {
    let Ok(all) = fs::read_dir(format!("/proc/{}/fd", process.id())) else { return String::new() };
    let links = all.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.map(|link| format!("{} ", link.display())).collect()
}
