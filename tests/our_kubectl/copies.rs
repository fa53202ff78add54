//! Copies: links and modes, broken connections.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use tower_kube_streaming_testing::{
    Death,
    relay::{FaultRelay, Faults},
};

use super::{
    support::{
        Outcome, count,
        kubectl::{Output, Run, ours},
        lab::{Lab, Settings, Topology, sessions_in},
        noise,
    },
    ways::GATES,
};
use crate::ensure;

const MIB: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

fn text(path: &Path) -> String {
    path.to_str().expect("paths are text").to_owned()
}

fn told(error: std::io::Error) -> String {
    error.to_string()
}

/// What a tree is: path, kind and mode, and what is in it.
fn described(root: &Path) -> Outcome<Vec<String>> {
    let (mut found, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(path) = open.pop() {
        let metadata = path.symlink_metadata().map_err(told)?;
        let mode = metadata.mode() & 0o7777;
        let name = text(path.strip_prefix(root).expect("below the root"));
        found.push(if metadata.is_symlink() {
            format!("{name} -> {}", text(&fs::read_link(&path).map_err(told)?))
        } else if metadata.is_dir() {
            open.extend(fs::read_dir(&path).map_err(told)?.map(|entry| entry.expect("an entry").path()));
            format!("{name}/ {mode:o}")
        } else {
            let bytes = fs::read(&path).map_err(told)?;
            format!("{name} {mode:o} {} names, {}", metadata.nlink(), super::support::sha256(&bytes, 1))
        });
    }
    found.sort();
    Ok(found)
}

fn make_tree(root: &Path) -> Outcome {
    let file = |name: &str, mode: u32, bytes: &[u8]| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("below the root")).map_err(told)?;
        fs::write(&path, bytes).map_err(told)?;
        fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(told)
    };
    file("plain", 0o644, b"plain")?;
    file("secret", 0o400, b"secret")?;
    file("run me", 0o755, b"#!/bin/sh\n")?;
    file("deep/er/wörld \"quoted\" $(x)", 0o640, &noise(11, 3 * MIB + 7))?;
    file("deep/empty", 0o600, b"")?;
    file(&format!("long/{}/{}", "n".repeat(120), "m".repeat(120)), 0o644, b"a name that needs two heads")?;
    for number in 0..count(50, 2000) {
        file(&format!("many/{number}"), 0o644, &noise(number, 700))?;
    }
    fs::hard_link(root.join("plain"), root.join("deep/also plain")).map_err(told)?;
    symlink("../plain", root.join("deep/link")).map_err(told)?;
    symlink("nowhere", root.join("dangling")).map_err(told)?;
    symlink("deep/er", root.join("to a folder")).map_err(told)?;
    fs::create_dir(root.join("nothing in it")).map_err(told)?;
    fs::set_permissions(root.join("nothing in it"), Permissions::from_mode(0o555)).map_err(told)?;
    fs::set_permissions(root.join("deep"), Permissions::from_mode(0o750)).map_err(told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_goes_in_and_comes_out_with_its_links_and_modes_whatever_the_gates_say() -> Outcome {
    for (apiserver, kubelet, websocket) in GATES {
        let lab =
            Lab::start_with(Topology::TwoProcesses, Settings { apiserver, kubelet, ..Settings::default() }).await?;
        let client = ours(websocket);
        let run = Run { lab: &lab, client: &client };
        let path = |name| lab.scratch.path().join(name);
        let (here, there, back) = (path("here"), path("there"), path("back"));
        make_tree(&here)?;
        let wanted = described(&here)?;
        run.kubectl(&["cp", "-c", "shell", &text(&here), &format!("demo:{}", text(&there))]).await?.exits(0)?;
        ensure!(described(&there)? == wanted, "there: {:#?}", described(&there)?);
        run.kubectl(&["cp", &format!("default/demo:{}", text(&there)), &text(&back)]).await?.exits(0)?;
        ensure!(described(&back)? == wanted, "back: {:#?}", described(&back)?);
        // Again over what is there, links and all.
        run.kubectl(&["cp", &format!("demo:{}", text(&there)), &text(&back)]).await?.exits(0)?;
        ensure!(described(&back)? == wanted, "back again: {:#?}", described(&back)?);
        // Into a folder that is there, as `cp -r` does it.
        run.kubectl(&["cp", &text(&here.join("deep")), &format!("demo:{}", text(&back))]).await?.exits(0)?;
        ensure!(back.join("deep/deep/er").exists() || back.join("deep/er").exists(), "the folder went elsewhere");
        // Each copy in asks first whether there is a folder.
        let wanted = if websocket && apiserver.is_empty() { "v5.channel.k8s.io" } else { "v4.channel.k8s.io" };
        let over = |text: &str| sessions_in(text).iter().filter(|it| it.field("protocol.in") == Some(wanted)).count();
        lab.apiserver.stderr.until(PATIENCE, &format!("six sessions over {wanted}"), |text| over(text) >= 6).await?;
        lab.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modes_are_not_taken_over_where_that_is_asked_for() -> Outcome {
    let lab = Lab::start(Topology::AllInOne).await?;
    let client = ours(true);
    let run = Run { lab: &lab, client: &client };
    let (there, back) = (lab.scratch.path().join("there"), lab.scratch.path().join("back"));
    fs::write(&there, b"x").map_err(told)?;
    fs::set_permissions(&there, Permissions::from_mode(0o755)).map_err(told)?;
    run.kubectl(&["cp", "--no-preserve", &format!("demo:{}", text(&there)), &text(&back)]).await?.exits(0)?;
    let mode = back.metadata().map_err(told)?.mode();
    ensure!(mode & 0o111 == 0, "mode {mode:o}");
    lab.stop().await
}

/// A lab behind a relay that cuts each connection after so many bytes, and what is to be copied.
async fn cut_after(mib: usize) -> Outcome<(Lab, FaultRelay, PathBuf)> {
    let lab = Lab::plain().await?;
    let cut = Some(((mib * MIB) as u64, Death::Rst));
    let relay = FaultRelay::start(lab.address(), Faults { cut, ..Faults::default() }).await.map_err(told)?;
    let source = lab.scratch.dir("source");
    fs::write(source.join("one"), noise(21, 3 * MIB)).map_err(told)?;
    fs::write(source.join("two"), noise(22, 2 * MIB)).map_err(told)?;
    Ok((lab, relay, source))
}

async fn cp(lab: &Lab, relay: &FaultRelay, websocket: bool, args: &[&str]) -> Outcome<Output> {
    let server = format!("--server=http://{}", relay.address());
    let client = ours(websocket);
    Run { lab, client: &client }.kubectl(&[&[&*server, "cp", "-c", "shell"], args].concat()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_out_goes_on_where_its_connection_broke() -> Outcome {
    let (lab, relay, source) = cut_after(2).await?;
    let remote = format!("demo:{}", text(&source));
    for websocket in [true, false] {
        let back = lab.scratch.path().join(format!("back-{websocket}"));
        let output = cp(&lab, &relay, websocket, &[&remote, &text(&back)]).await?.exits(1)?;
        output.says("error: ")?;
        let output = cp(&lab, &relay, websocket, &["--retries=1", &remote, &text(&back)]).await?.exits(1)?;
        output.says("retry 1 (0 left)")?;
        // 5 MiB in pieces of less than 2.
        let output = cp(&lab, &relay, websocket, &["--retries", "9", &remote, &text(&back)]).await?.exits(0)?;
        let output = output.says("Resuming copy at ")?.says("retry 2 (7 left)")?;
        ensure!(!output.stderr.contains("retry 5"), "{output:?}");
        ensure!(described(&back)? == described(&source)?, "the copy differs");
    }
    lab.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_in_that_breaks_fails_and_is_tried_anew() -> Outcome {
    let (lab, relay, source) = cut_after(2).await?;
    for websocket in [true, false] {
        let there = lab.scratch.path().join(format!("there-{websocket}"));
        let remote = format!("demo:{}", text(&there));
        cp(&lab, &relay, websocket, &[&text(&source), &remote]).await?.exits(1)?.says("error: ")?;
        let output = cp(&lab, &relay, websocket, &["--retries=1", &text(&source), &remote]).await?.exits(1)?;
        output.says("Beginning the copy anew, retry 1 (0 left)")?;
        let small = lab.scratch.path().join("small");
        fs::write(&small, noise(23, MIB)).map_err(told)?;
        cp(&lab, &relay, websocket, &["--retries=1", &text(&small), &remote]).await?.exits(0)?;
    }
    lab.stop().await
}
