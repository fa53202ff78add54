//! `exec -f`: the object in a file, beside the real one and alone.

use std::fs;

use super::support::{
    Outcome, Scratch,
    kubectl::{Client, Run, client, ours},
    lab::{Lab, Topology},
};
use crate::ensure;

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: demo}
spec:
  containers: [{name: shell}, {name: sidecar}]
";

/// Files by name.
fn files(scratch: &Scratch) -> Outcome {
    let list = format!("apiVersion: v1\nkind: List\nitems:\n- {}", POD.trim_end().replace('\n', "\n  "));
    let json = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "demo", "namespace": "default" },
        "spec": { "containers": [{ "name": "shell" }] },
    });
    let folder = scratch.path().join("folder");
    fs::create_dir(&folder).map_err(|error| error.to_string())?;
    for (name, text) in [
        ("pod.yaml", POD.to_owned()),
        ("pod.json", format!("{json:#}\n").replace("  ", "\t")),
        ("mark.yaml", format!("\u{feff}{POD}")),
        ("gaps.yaml", format!("---\n# nothing\n---\n{POD}---\n")),
        ("nope.yaml", POD.replace("demo", "nope")),
        ("other.yaml", POD.replace("name: demo", "name: demo, namespace: other")),
        ("strange.yaml", POD.replace("shell", "strange")),
        ("bare.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: demo}\n".to_owned()),
        ("done.yaml", format!("{POD}status: {{phase: Succeeded}}\n")),
        ("two.yaml", format!("{POD}---\n{POD}")),
        ("empty.yaml", String::new()),
        ("list.yaml", list),
        ("broken.yaml", "a: b: c\n".to_owned()),
        ("gadget.yaml", POD.replace("kind: Pod", "kind: Gadget")),
        ("kindless.yaml", "apiVersion: v1\nmetadata: {name: demo}\ndata: {key: c2VjcmV0}\n".to_owned()),
        ("nameless.yaml", POD.replace("name: demo", "")),
        ("number.yaml", POD.replace("name: demo", "name: 3")),
        ("long.yaml", format!("{POD}{}", "#".repeat(4 << 20))),
        ("bytes.yaml", POD.to_owned()),
        ("folder/pod.yaml", POD.to_owned()),
    ] {
        fs::write(scratch.path().join(name), text).map_err(|error| error.to_string())?;
    }
    fs::write(scratch.path().join("bytes.yaml"), b"kind: \xff\n").map_err(|error| error.to_string())
}

async fn said(lab: &Lab, client: &Client, args: &[&str]) -> Outcome<(Option<i32>, String, String)> {
    let mut command = Run { lab, client }.command(args);
    command.current_dir(lab.scratch.path()).stdin(std::process::Stdio::null());
    let output = command.output().await.map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

/// Command lines that run, or are refused, as by kubectl 1.37, to the byte.
const SAME: &[&[&str]] = &[
    &["-f", "nope.yaml", "--", "echo", "found"],
    &["-f", "other.yaml", "--", "echo", "found"],
    &["-f", "other.yaml", "-n", "default", "--", "echo", "found"],
    &["-f", "other.yaml", "-n", "other", "--", "echo", "found"],
    &["-f", "pod.json", "-n", "other", "--", "echo", "found"],
    &["-f", "pod.yaml", "-n", "other", "--", "echo", "found"],
    &["-f", "strange.yaml", "--", "echo", "found"],
    &["-f", "bare.yaml", "--", "echo", "found"],
    &["-f", "done.yaml", "--", "echo", "found"],
    &["-f", "two.yaml", "--", "echo", "found"],
    &["-f", "empty.yaml", "--", "echo", "found"],
    &["-f", "list.yaml", "--", "echo", "found"],
    &["-f", "pod.yaml,pod.json", "--", "echo", "found"],
    &["-f", "pod.yaml", "-f", "pod.json", "--", "echo", "found"],
    &["-f", "pod.yaml", "-f", "missing.yaml", "--", "echo", "found"],
    &["-f", "missing.yaml", "--", "echo", "found"],
    &["-f", "missing.yaml", "demo", "--", "echo", "found"],
    &["-f", "pod.yaml", "demo", "--", "echo", "found"],
    &["-f", "pod.yaml", "-c", "nope", "--", "echo", "found"],
    &["-f", "pod.yaml", "-c", "sidecar", "--", "echo", "found"],
    &["-f", "pod.yaml"],
    &["-f", "pod.yaml", "demo"],
    &["-f", "pod.yaml", "demo", "other", "--", "echo", "found"],
    &["-f", "-", "--", "echo", "found"],
    &["-f", "", "--", "echo", "found"],
    &["-k", "folder", "--", "echo", "found"],
    &["-R", "-f", "folder", "--", "echo", "found"],
    &["demo", "-iz", "--", "echo", "found"],
    &["demo", "--kustomize", "folder", "--", "echo", "found"],
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_in_a_file_is_taken_as_kubectl_1_37_takes_it() -> Outcome {
    let lab = Lab::start(Topology::TwoProcesses).await?;
    files(&lab.scratch)?;
    let (real, own) = (client("1.37", true), ours(true));
    let mut differ = Vec::new();
    for (file, said_too) in [
        ("pod.yaml", "Defaulted container \"shell\" out of: shell, sidecar\n"),
        ("mark.yaml", "Defaulted container \"shell\" out of: shell, sidecar\n"),
        ("gaps.yaml", "Defaulted container \"shell\" out of: shell, sidecar\n"),
        ("pod.json", ""),
    ] {
        for client in real.iter().chain([&own]) {
            let said = said(&lab, client, &["exec", "-f", file, "--", "echo", "found"]).await?;
            if said != (Some(0), "found\n".to_owned(), said_too.to_owned()) {
                differ.push(format!("{file}, {client}: {said:?}"));
            }
        }
    }
    for args in SAME {
        let Some(real) = &real else { break };
        let args = [&["exec"], *args].concat();
        let (real, ours) = (said(&lab, real, &args).await?, said(&lab, &own, &args).await?);
        if real != ours {
            differ.push(format!("{args:?}\n  kubectl: {real:?}\n  ours: {ours:?}"));
        }
    }
    ensure!(differ.is_empty(), "{}", differ.join("\n"));
    lab.stop().await
}

/// Where the real one goes further, or shows what is in the file.
#[tokio::test]
async fn what_is_no_file_of_one_known_object_is_refused_with_the_reason() -> Outcome {
    let lab = Lab::start(Topology::AllInOne).await?;
    files(&lab.scratch)?;
    for (file, wanted) in [
        ("folder", "error: \"folder\" is a folder, and --filename takes single files alone\n"),
        ("https://example/x", "error: \"https://example/x\" is a URL, and --filename takes local files alone\n"),
        ("long.yaml", "error: open long.yaml: it is longer than 4 MiB\n"),
        ("bytes.yaml", "error: open bytes.yaml: stream did not contain valid UTF-8\n"),
        ("gadget.yaml", "error: cannot exec into a \"Gadget\" of \"v1\": it stands for no pod\n"),
        ("kindless.yaml", "error: unable to decode \"kindless.yaml\": Object 'Kind' is missing\n"),
        ("nameless.yaml", "error: unable to decode \"nameless.yaml\": resource name may not be empty\n"),
        ("number.yaml", "error: unable to decode \"number.yaml\": metadata.name is no string\n"),
    ] {
        let (code, _, said) = said(&lab, &ours(true), &["exec", "-f", file, "--", "echo", "found"]).await?;
        ensure!(code == Some(1) && said == wanted, "{file}: {said}");
    }
    let (code, _, broken) = said(&lab, &ours(true), &["exec", "-f", "broken.yaml", "--", "echo", "found"]).await?;
    ensure!(code == Some(1) && broken.starts_with("error: error parsing broken.yaml: "), "{broken}");
    lab.stop().await
}
