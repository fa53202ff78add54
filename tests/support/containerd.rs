//! A containerd of the test's own, and Pods for it.
//!
//! `testing/containerd` starts one that nobody else uses. Where it cannot, because it takes root and four Debian packages, that is a SKIP,
//! and a failure under `REQUIRE_REAL=1`.

use std::{env, fs, ops::RangeInclusive, path::PathBuf, process::Command};

use super::{
    Outcome, Scratch,
    lab::{Lab, Settings, Topology},
    skip,
};
use crate::ensure;

/// The containers of the lab's Pod, as real ones. Their network has nothing but a loopback interface of its own.
pub const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: demo, namespace: default}
spec:
  containers:
    - {name: shell, image: "localhost/busybox:test", command: [/bin/sh], stdin: true, tty: true}
    - name: sidecar
      image: localhost/busybox:test
      command: [/bin/sh, -c]
      args:
        - |
          mkdir /www && echo "from $POD" >/www/index.html
          for port in $(seq 8080 8104); do httpd -p 127.0.0.1:$port -h /www; done
          n=0; while sleep 0.3; do n=$((n+1)); echo "line $n"; done
      env: [{name: POD, value: the pod}]
"#;

/// Where the sidecar serves its page. Each server lets nine connections wait; of more the kernel drops some, which then try
/// again after 1, 3, 7, … 63 s.
pub const WEB: RangeInclusive<u16> = 8080..=8104;

/// A containerd, stopped with its handle.
#[derive(Debug)]
pub struct Containerd {
    pub dir: PathBuf,
}

impl Containerd {
    /// `None`: it cannot run here, which is a SKIP.
    pub fn start() -> Outcome<Option<Self>> {
        if ["TEST_COUNTS", "REQUIRE_REAL"].iter().all(|name| env::var_os(name).is_none()) {
            println!(
                "SKIP: real containers take two minutes, and root; scripts/test runs them, and so does TEST_COUNTS=quick"
            );
            return Ok(None);
        }
        let check = script().arg("check").output().map_err(|error| error.to_string())?;
        if !check.status.success() {
            skip(String::from_utf8_lossy(&check.stdout).trim());
            return Ok(None);
        }
        // Not in `target`: the path of a socket is short.
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let containerd = Self { dir: env::temp_dir().join(format!("ctd-{}-{next}", std::process::id())) };
        containerd.run("start")?;
        Ok(Some(containerd))
    }

    pub fn run(&self, what: &str) -> Outcome {
        let done = script().arg(what).arg(&self.dir).output().map_err(|error| error.to_string())?;
        ensure!(done.status.success(), "testing/containerd {what}: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }

    pub fn endpoint(&self) -> String {
        format!("--container-runtime-endpoint=unix://{}", self.dir.join("c.sock").display())
    }

    /// How many sandboxes and containers there are.
    pub fn containers(&self) -> Outcome<usize> {
        Ok(self.ctr(&["containers", "ls", "--quiet"])?.lines().count())
    }

    /// What `ctr` says to that.
    pub fn ctr(&self, args: &[&str]) -> Outcome<String> {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.dir.join("c.sock")).args(["--namespace", "k8s.io"]).args(args);
        let said = ctr.output().map_err(|error| error.to_string())?;
        ensure!(said.status.success(), "{said:?}");
        Ok(String::from_utf8_lossy(&said.stdout).into_owned())
    }

    /// The API server and the kubelet, and the Pod in this runtime.
    pub async fn lab(&self, manifests: &Scratch) -> Outcome<Lab> {
        let flags = [self.endpoint(), manifest(manifests, POD)?];
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        Lab::start_with(Topology::TwoProcesses, Settings { kubelet: &flags, ..Settings::default() }).await
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.run("stop");
    }
}

fn script() -> Command {
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/testing/containerd"))
}

/// Writes the manifest; the kubelet's flag for it.
pub fn manifest(scratch: &Scratch, pod: &str) -> Outcome<String> {
    let file = scratch.path().join("pod.yaml");
    fs::write(&file, pod).map_err(|error| error.to_string())?;
    Ok(format!("--pod-manifest-path={}", file.display()))
}
