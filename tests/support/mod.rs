//! Starts the examples as real processes, and drives real kubectl against them.
//!
//! | file | one idea |
//! |---|---|
//! | `process` | a child process whose output can be waited for, and that dies with its handle |
//! | `lab` | the examples, built and started: all in one process, or API server and kubelet apart |
//! | `gateway` | a lab with a gateway in front of it |
//! | `containerd` | a container runtime of the test's own, and Pods for it |
//! | `plain` | a lab over plain HTTP, for faults between the parts |
//! | `foreign` | servers that take no port 0 |
//! | `http` | one plain request to a server of a lab; its metrics |
//! | `forms` | every kind of request that may open a stream |
//! | `proc` | what a process holds: memory, descriptors, threads, children |
//! | `kubectl` | which kubectl binaries there are, and one run of one of them |
//! | `forward` | a running `kubectl port-forward` |
//! | `shell` | a running `kubectl exec` that says what it is told |
//! | `balancer` | connections to several servers in turn |
//! | `pod` | what listens in the pod: a web server, and servers of bad manners |
//! | `through` | clients of a forwarded port |
//! | `terminal` | a program on a real pty |

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod balancer;
pub mod containerd;
pub mod foreign;
pub mod forms;
pub mod forward;
pub mod gateway;
pub mod http;
pub mod kubectl;
pub mod lab;
pub mod plain;
pub mod pod;
pub mod proc;
pub mod process;
pub mod shell;
pub mod terminal;
pub mod through;

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use sha2::{Digest, Sha256};

/// A check's result: `Err` says what was seen instead.
pub type Outcome<T = ()> = Result<T, String>;

/// Returns an error from the surrounding check unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err(format!($($why)+));
        }
    };
}

/// Whether `scripts/test full` runs: the same code, larger counts.
pub fn full() -> bool {
    env::var("TEST_COUNTS").is_ok_and(|counts| counts == "full")
}

/// `quick`, or `full` under `scripts/test full`.
pub fn count<T>(quick: T, full_: T) -> T {
    if full() { full_ } else { quick }
}

/// Says on stdout that something was not tested. Where real parts are required, that is a failure.
pub fn skip(why: &str) {
    println!("SKIP: {why}");
    assert!(env::var_os("REQUIRE_REAL").is_none_or(|value| value != "1"), "REQUIRE_REAL=1, but {why}");
}

/// A folder of one test run, removed with its handle.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(what: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&dir).expect("a scratch folder can be made");
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A new folder in it.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.0.join(name);
        fs::create_dir_all(&dir).expect("a folder can be made");
        dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Bytes that look random and are the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// SHA-256 in hex of `block`, `times` over.
pub fn sha256(block: &[u8], times: usize) -> String {
    let mut hash = Sha256::new();
    (0..times).for_each(|_| hash.update(block));
    hex(&hash.finalize())
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
