//! What `deploy/` holds: every manifest against the types of its API, all of them against each other and against the
//! program, and the Dockerfile's steps as plain commands.

mod support;

use std::{collections::BTreeSet, env, fs, path::Path, process::Command};

use k8s_openapi::{
    Resource,
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{ConfigMap, Namespace, Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
};
use kube::config::Kubeconfig;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use support::{
    Outcome, Scratch,
    http::{Login, ask, url},
    lab::{Lab, Topology, example},
};
use tower_kube_streaming::adapters::prometheus::StreamingMetrics;

const NAMESPACE: &str = "kube-streaming";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All documents of `deploy/gateway`.
fn documents() -> Vec<Value> {
    let dir = fs::read_dir(root().join("deploy/gateway")).expect("the folder is there");
    let mut files: Vec<_> = dir.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let read = |file: &std::path::PathBuf| -> Vec<Value> {
        let yaml = fs::read_to_string(file).expect("text");
        serde_saphyr::from_multiple(&yaml).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    };
    files.iter().flat_map(read).collect()
}

/// The one document of a kind.
fn one(kind: &str) -> Value {
    let mut of_kind = documents().into_iter().filter(|document| document["kind"] == kind);
    let found = of_kind.next().unwrap_or_else(|| panic!("there is no {kind}"));
    assert!(of_kind.next().is_none(), "there is more than one {kind}");
    found
}

/// Reads a document as `T`. What `T` does not have, which it skips, is missing when it is written again.
fn strictly<T: DeserializeOwned + Serialize>(document: &Value) -> Result<T, String> {
    let typed: T = serde_json::from_value(document.clone()).map_err(|error| error.to_string())?;
    let again = serde_json::to_value(&typed).map_err(|error| error.to_string())?;
    if again == *document { Ok(typed) } else { Err(format!("read as {again:#}\nfrom {document:#}")) }
}

fn object<T: DeserializeOwned + Serialize + Resource>(document: &Value) -> Result<(), String> {
    if document["apiVersion"] != T::API_VERSION {
        return Err(format!("{} is of {}", document["kind"], T::API_VERSION));
    }
    strictly::<T>(document).map(drop)
}

/// Of the CustomResourceDefinition of `monitoring.coreos.com/v1` what is used here.
mod service_monitor {
    use std::collections::BTreeMap;

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    pub(crate) struct ServiceMonitor {
        api_version: String,
        kind: String,
        metadata: Metadata,
        spec: Spec,
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Metadata {
        name: String,
        namespace: String,
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Spec {
        selector: Selector,
        endpoints: Vec<Endpoint>,
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Selector {
        match_labels: BTreeMap<String, String>,
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Endpoint {
        port: String,
        path: String,
        scheme: String,
        interval: String,
        bearer_token_file: String,
        tls_config: TlsConfig,
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct TlsConfig {
        server_name: String,
        ca: Ca,
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Ca {
        config_map: Key,
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Key {
        name: String,
        key: String,
    }
}

fn check(document: &Value) -> Result<(), String> {
    match document["kind"].as_str().unwrap_or_default() {
        "ClusterRole" => object::<ClusterRole>(document),
        "ClusterRoleBinding" => object::<ClusterRoleBinding>(document),
        "ConfigMap" => object::<ConfigMap>(document),
        "Deployment" => object::<Deployment>(document),
        "HorizontalPodAutoscaler" => object::<HorizontalPodAutoscaler>(document),
        "Namespace" => object::<Namespace>(document),
        "PodDisruptionBudget" => object::<PodDisruptionBudget>(document),
        "Service" => object::<Service>(document),
        "ServiceAccount" => object::<ServiceAccount>(document),
        "ServiceMonitor" if document["apiVersion"] == "monitoring.coreos.com/v1" => {
            strictly::<service_monitor::ServiceMonitor>(document).map(drop)
        }
        kind => Err(format!("{kind:?} of {} is not known here", document["apiVersion"])),
    }
}

#[test]
fn every_document_is_what_the_api_takes_and_nothing_besides() {
    let documents = documents();
    assert_eq!(documents.len(), 10);
    for document in &documents {
        check(document).unwrap_or_else(|why| panic!("{}", why));
        let namespace = &document["metadata"]["namespace"];
        match document["kind"].as_str() {
            Some("Namespace" | "ClusterRole" | "ClusterRoleBinding") => assert!(namespace.is_null(), "{document}"),
            _ => assert_eq!(*namespace, NAMESPACE, "{document}"),
        }
    }
    assert_eq!(one("Namespace")["metadata"]["name"], NAMESPACE);
}

#[test]
fn a_field_that_is_misspelt_or_of_the_wrong_type_is_found() {
    for (kind, pointer, wrong) in [
        ("Deployment", "/spec/template/spec/containers/0", json!({ "name": "a", "livenesProbe": {} })),
        ("Deployment", "/spec/template/spec/containers/0/ports/0/containerPort", json!("6443")),
        ("Deployment", "/apiVersion", json!("apps/v1beta1")),
        ("PodDisruptionBudget", "/spec", json!({ "maxUnavailible": 1 })),
        ("ClusterRole", "/rules/0", json!({ "apiGroup": [""], "resources": ["pods"], "verbs": ["get"] })),
        ("HorizontalPodAutoscaler", "/spec/metrics/0/pods/metric", json!({ "name": "a", "selektor": {} })),
        ("ServiceMonitor", "/spec/endpoints/0/port", json!(443)),
        ("ServiceMonitor", "/spec/selector", json!({ "matchLabels": {}, "matchNames": {} })),
        ("Service", "/kind", json!("Servis")),
    ] {
        let mut document = one(kind);
        *document.pointer_mut(pointer).expect("it is there") = wrong;
        assert!(check(&document).is_err(), "{kind} {pointer}");
    }
}

#[test]
fn what_the_documents_say_of_each_other_is_so() {
    let (deployment, service, monitor) = (one("Deployment"), one("Service"), one("ServiceMonitor"));
    let pod = &deployment["spec"]["template"];
    let labels = &pod["metadata"]["labels"];
    assert_eq!(deployment["spec"]["selector"]["matchLabels"], *labels);
    assert_eq!(pod["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"], *labels);
    assert_eq!(one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"], *labels);
    assert_eq!(service["spec"]["selector"], *labels);
    assert_eq!(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"]);

    let target = &one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"];
    for field in ["apiVersion", "kind"] {
        assert_eq!(target[field], deployment[field]);
    }
    assert_eq!(target["name"], deployment["metadata"]["name"]);

    let account = one("ServiceAccount");
    assert_eq!(pod["spec"]["serviceAccountName"], account["metadata"]["name"]);
    let (role, binding) = (one("ClusterRole"), one("ClusterRoleBinding"));
    let name = &role["metadata"]["name"];
    assert_eq!(
        binding["roleRef"],
        json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name })
    );
    let subject = json!({ "kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": NAMESPACE });
    assert_eq!(binding["subjects"], json!([subject]));

    let container = &pod["spec"]["containers"][0];
    let port = &container["ports"][0];
    assert_eq!(service["spec"]["ports"][0]["targetPort"], port["name"]);
    assert_eq!(monitor["spec"]["endpoints"][0]["port"], service["spec"]["ports"][0]["name"]);
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], port["name"], "{probe}");
    }
    assert!(flags().contains(&format!("--listen=0.0.0.0:{}", port["containerPort"])));
    let host = format!("{}.{NAMESPACE}.svc", service["metadata"]["name"].as_str().expect("a name"));
    assert_eq!(monitor["spec"]["endpoints"][0]["tlsConfig"]["serverName"], host.as_str());
    // A stop takes less than 30 s.
    assert!(pod["spec"]["terminationGracePeriodSeconds"].as_u64().is_some_and(|seconds| seconds > 30));
}

#[test]
fn the_gateway_may_look_where_streams_go_and_ask_who_may_open_them_and_no_more() {
    assert_eq!(
        one("ClusterRole")["rules"],
        json!([
            { "apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["get", "list", "watch"] },
            { "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"] },
            { "apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"] },
        ])
    );
    let spec = &one("Deployment")["spec"]["template"]["spec"];
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    let container = &spec["containers"][0]["securityContext"];
    assert_eq!(
        *container,
        json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
        })
    );
}

/// The flags that the gateway is started with.
fn flags() -> Vec<String> {
    serde_json::from_value(one("Deployment")["spec"]["template"]["spec"]["containers"][0]["args"].clone())
        .expect("words")
}

#[test]
fn every_file_that_a_flag_names_is_mounted_and_is_there_or_said_to_be_the_operators() {
    let readme = fs::read_to_string(root().join("deploy/README.md")).expect("text");
    let spec = one("Deployment")["spec"]["template"]["spec"].take();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mounts = list(&spec["containers"][0]["volumeMounts"]);
    let (mut used, config) = (BTreeSet::new(), one("ConfigMap"));
    for flag in flags() {
        let Some((_, path)) = flag.split_once("=/") else { continue };
        let path = format!("/{path}");
        let below = |mount: &&Value| mount["mountPath"].as_str().is_some_and(|at| path.starts_with(at));
        let mount = mounts.iter().find(below).unwrap_or_else(|| panic!("{flag}: not mounted"));
        used.insert(mount["name"].as_str().expect("a name").to_owned());
        let volume = list(&spec["volumes"]).into_iter().find(|volume| volume["name"] == mount["name"]);
        let volume = volume.unwrap_or_else(|| panic!("{flag}: no volume"));
        if !volume["emptyDir"].is_null() {
            continue;
        }
        let key = path.rsplit('/').next().expect("a file");
        let source = volume.pointer("/configMap/name").or(volume.pointer("/secret/secretName"));
        let source = source.and_then(Value::as_str).unwrap_or_else(|| panic!("{flag}: no source"));
        if config["metadata"]["name"] == source {
            assert!(config["data"][key].is_string(), "{flag}");
        } else {
            let row = |line: &str| line.contains(&format!("`{source}`")) && line.contains(&format!("`{key}`"));
            assert!(readme.lines().any(row), "{flag}: deploy/README.md does not name {source} with {key}");
        }
    }
    assert_eq!(used.len(), mounts.len(), "mounted for nothing");
    let Some(ca) = one("ServiceMonitor").pointer("/spec/endpoints/0/tlsConfig/ca/configMap").cloned() else {
        panic!("no CA")
    };
    assert!(
        readme.contains(ca["name"].as_str().expect("a name")) && readme.contains(ca["key"].as_str().expect("a key"))
    );
}

#[test]
fn the_kubeconfig_logs_in_as_the_service_account() {
    let config = one("ConfigMap");
    let yaml = config["data"]["kubeconfig"].as_str().expect("a file");
    let document: Value = serde_saphyr::from_str(yaml).expect("YAML");
    let kubeconfig: Kubeconfig = strictly(&document).expect("nothing that the loader does not know");
    assert_eq!(kubeconfig.current_context.as_deref(), Some(&*kubeconfig.contexts[0].name));
    let context = kubeconfig.contexts[0].context.as_ref().expect("a context");
    assert_eq!(context.cluster, kubeconfig.clusters[0].name);
    assert_eq!(context.user.as_ref(), Some(&kubeconfig.auth_infos[0].name));
    let user = kubeconfig.auth_infos[0].auth_info.as_ref().expect("a user");
    assert_eq!(user.token_file.as_deref(), Some("/var/run/secrets/kubernetes.io/serviceaccount/token"));
}

#[tokio::test]
async fn the_program_knows_the_flags_and_serves_what_is_probed_and_counted() -> Outcome {
    let help = example("apiserver").arg("--help").output().await.map_err(|error| error.to_string())?;
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for flag in flags() {
        let name = flag.split('=').next().unwrap_or_default();
        ensure!(help.split_whitespace().any(|word| word == name), "apiserver --help does not know {name}");
    }
    // Together they make sense too: what it misses is the files, not a flag.
    let scratch = Scratch::new("deploy");
    let own = [format!("--data-dir={}", scratch.path().display()), "--listen=127.0.0.1:0".to_owned()];
    let given = flags().into_iter().filter(|flag| !flag.starts_with("--data-dir") && !flag.starts_with("--listen"));
    let started = example("apiserver").args(given).args(own).output().await.map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    ensure!(started.status.code() == Some(2) && said.contains("apiserver: /etc/gateway/"), "{said}");

    let lab = Lab::start(Topology::AllInOne).await?;
    let container = one("Deployment")["spec"]["template"]["spec"]["containers"][0].take();
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        // As kubelets probe: as nobody.
        let path = container[probe]["httpGet"]["path"].as_str().unwrap_or_default();
        let request = http::Request::get(format!("{}{path}", url(&lab.apiserver)?)).body(()).expect("a request");
        let answer = ask(&lab.ca(), Login::Nobody, request).await?;
        ensure!(answer.status() == 200, "{probe}: {answer:?}");
    }
    let path = one("ServiceMonitor")["spec"]["endpoints"][0]["path"].as_str().unwrap_or_default().to_owned();
    ensure!(lab.get_from_apiserver(&path).await?.status() == 200, "{path}");
    lab.stop().await
}

#[test]
fn replicas_are_added_by_a_gauge_that_there_is() {
    let scaler = one("HorizontalPodAutoscaler");
    let metric = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"].as_str().expect("a name").to_owned();
    assert!(StreamingMetrics::api_server().render().contains(&format!("# TYPE {metric} gauge\n")), "{metric}");
    assert_eq!(scaler["spec"]["minReplicas"], one("Deployment")["spec"]["replicas"]);
}

/// An instruction of the Dockerfile, in one line.
fn instructions() -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join("deploy/Dockerfile")).expect("text");
    let lines = text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    let joined = lines.replace("\\\n", " ");
    let split = |line: &str| line.split_once(' ').map(|(what, rest)| (what.to_owned(), rest.trim().to_owned()));
    joined.lines().filter_map(split).collect()
}

#[test]
fn the_dockerfiles_steps_run_as_plain_commands() {
    let all = instructions();
    let stage = |(what, _): &(String, String)| what == "FROM";
    let second = all.iter().rposition(stage).expect("two stages");
    let (builder, last) = all.split_at(second);
    assert!(builder[0].1.ends_with(" AS builder") && !builder[1..].iter().any(stage), "{builder:?}");

    let scratch = Scratch::new("dockerfile");
    let out = scratch.path().join("out");
    let mut shell = Command::new("sh");
    shell.current_dir(root()).env_clear();
    // A plain shell's environment: what the outer cargo has put into ours would build half of the tree again.
    for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "CARGO_BUILD_JOBS"] {
        shell.envs(env::var_os(name).map(|value| (name, value)));
    }
    let mut script = "set -e\n".to_owned();
    for (what, rest) in builder {
        match what.as_str() {
            "FROM" | "WORKDIR" => {}
            // What stands here is what would be copied.
            "COPY" => assert_eq!(rest, ". ."),
            "ARG" => {
                let (name, default) = rest.split_once('=').expect("a default");
                // Optimized, it takes minutes; and nothing is written outside of the scratch folder and `target`.
                let value = match name {
                    "CARGO_PROFILE" => "dev",
                    "OUT" => out.to_str().expect("UTF-8"),
                    _ => default,
                };
                shell.env(name, value);
            }
            "RUN" => script += &format!("{rest}\n"),
            _ => panic!("{what} is not known here"),
        }
    }
    let release = "cargo build --locked --profile \"$CARGO_PROFILE\" --example apiserver\n";
    assert!(script.contains(release) && builder.contains(&("ARG".into(), "CARGO_PROFILE=release".into())), "{script}");
    let done = shell.arg("-c").arg(&script).output().expect("a shell");
    assert!(done.status.success(), "{script}\n{}", String::from_utf8_lossy(&done.stderr));

    // The second stage takes what was made, and runs it as nobody in particular.
    let find = |wanted: &str| {
        let found = last.iter().find(|(what, _)| what == wanted);
        found.unwrap_or_else(|| panic!("no {wanted}")).1.clone()
    };
    assert!(builder.contains(&("ARG".into(), "OUT=/out".into())));
    let copied = find("COPY");
    let (from, to) = copied.strip_prefix("--from=builder ").and_then(|paths| paths.split_once(' ')).expect("two paths");
    assert_eq!(find("ENTRYPOINT"), format!("[{to:?}]"));
    assert_eq!(find("USER"), "65532:65532");
    let program = out.join(from.strip_prefix("/out/").expect("it lies where it was put"));
    let help = Command::new(program).arg("--help").output().expect("a program");
    assert!(help.status.success() && help.stdout.starts_with(b"A small Kubernetes API server"));
}
