//! Holds the direction of imports: reads `src/` and fails on a path that points up.
//!
//! The drawing is in DESIGN.md, "Direction of imports". The tables below are that drawing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What each module of the crate may import. A module that is missing here fails the test.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("status", &[]),
    ("gates", &["error"]),
    ("spdy", &[]),
    ("websocket", &[]),
    ("upgrade", &["error", "status"]),
    ("remote_command", &["error", "status", "upgrade", "spdy", "websocket"]),
    ("port_forward", &["error", "status", "upgrade", "spdy", "websocket"]),
    ("runtime", &["error", "status", "upgrade", "remote_command", "port_forward"]),
    ("layers", &["error", "status", "gates", "upgrade", "spdy", "websocket", "remote_command", "port_forward"]),
    (
        "services",
        &[
            "error",
            "status",
            "gates",
            "upgrade",
            "spdy",
            "websocket",
            "remote_command",
            "port_forward",
            "runtime",
            "layers",
        ],
    ),
    ("client", &["error", "status", "gates", "upgrade", "spdy", "websocket", "remote_command", "port_forward"]),
    (
        "adapters",
        &[
            "error",
            "status",
            "gates",
            "upgrade",
            "spdy",
            "websocket",
            "remote_command",
            "port_forward",
            "runtime",
            "layers",
            "services",
            "client",
        ],
    ),
];

/// These could become crates of their own, so their tests are held to the rule as well.
const STANDALONE: &[&str] = &["spdy", "websocket"];

/// `(file or folder under src, path prefix it must not name, why)`.
const NEVER: &[(&str, &str, &str)] = &[
    ("layers/tunnel", "crate::spdy", "the tunnel copies bytes"),
    ("spdy/frame", "tokio", "the protocol core has no I/O"),
    ("spdy/codec", "tokio", "the protocol core has no I/O"),
    ("spdy/session", "tokio", "the protocol core has no I/O"),
    ("spdy/header_block", "tokio", "the protocol core has no I/O"),
    ("spdy/zlib", "tokio", "the protocol core has no I/O"),
    ("websocket/codec", "tokio", "the protocol core has no I/O"),
    ("spdy", "http", "SPDY as Kubernetes speaks it knows no HTTP"),
    ("websocket/codec", "http", "the protocol core knows no HTTP"),
];

/// `(path prefix, the only file or folder under src that may name it)`.
const ONLY_IN: &[(&str, &str)] = &[
    ("fastwebsockets", "websocket/client"),
    ("k8s_openapi", "adapters/kube"),
    ("kube", "adapters/kube"),
    ("prost", "adapters/cri"),
    ("tonic", "adapters/cri"),
    ("hyper::upgrade", "upgrade"),
    ("crate::spdy::frame", "remote_command"),
    ("crate::spdy::codec", "remote_command"),
    ("crate::spdy::session", "remote_command"),
    ("crate::websocket::codec", "remote_command"),
];

/// `(identifier, the only file or folder under src that may say it)`.
const WORD_ONLY_IN: &[(&str, &str)] = &[("OnUpgrade", "upgrade"), ("fastwebsockets", "websocket/client")];

#[test]
fn imports_follow_the_arrows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&src, &src, &mut files);
    assert!(files.iter().any(|(name, _)| name == "lib.rs"), "no src/lib.rs was read");
    let found = violations(&files);
    assert!(found.is_empty(), "imports against the arrows:\n  {}", found.join("\n  "));
}

fn collect(root: &Path, dir: &Path, files: &mut Vec<(String, String)>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(dir).expect("src can be listed").map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(root, &path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).expect("below src").to_string_lossy().replace('\\', "/");
            files.push((name, fs::read_to_string(&path).expect("a source file is text")));
        }
    }
}

/// All breaches in `(name under src, text)`.
fn violations(files: &[(String, String)]) -> Vec<String> {
    let root_names = root_names(files);
    let rules: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let mut found = BTreeSet::new();
    for (name, text) in files {
        let module = module_of(name);
        let Some(top) = module.first() else { continue }; // lib.rs may name everything
        let Some(may) = rules.get(top.as_str()) else {
            found.insert(format!("{name}: module `{top}` has no rule in tests/architecture.rs"));
            continue;
        };
        let Source { paths, words } = read(text, &module);
        for (path, test) in &paths {
            let shown = path.join("::");
            if path[0] == "crate" {
                let Some(second) = path.get(1) else { continue };
                let target = root_names.get(second).unwrap_or(second);
                let exempt = *test && !STANDALONE.contains(&top.as_str());
                if second == "*" {
                    found.insert(format!("{name}: `{shown}` hides what is imported"));
                } else if target != top && !exempt && !may.contains(&target.as_str()) {
                    found.insert(format!("{name}: `{top}` must not import `{target}` (`{shown}`)"));
                }
            }
            for (place, prefix, why) in NEVER {
                if !test && lies_in(name, place) && starts_with(path, prefix) {
                    found.insert(format!("{name}: must not name `{shown}`: {why}"));
                }
            }
            for (prefix, place) in ONLY_IN {
                let own = prefix.strip_prefix("crate::").is_some_and(|rest| rest.split("::").next() == Some(top));
                if !test && !own && starts_with(path, prefix) && !lies_in(name, place) {
                    found.insert(format!("{name}: only src/{place} may name `{prefix}` (`{shown}`)"));
                }
            }
        }
        for (word, place) in WORD_ONLY_IN {
            if words.contains(*word) && !lies_in(name, place) {
                found.insert(format!("{name}: only src/{place} may say `{word}`"));
            }
        }
    }
    found.into_iter().collect()
}

/// `layers/tunnel` holds `layers/tunnel.rs` and all of `layers/tunnel/`.
fn lies_in(name: &str, place: &str) -> bool {
    name.strip_prefix(place).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

fn starts_with(path: &[String], prefix: &str) -> bool {
    let mut segments = path.iter();
    prefix.split("::").all(|wanted| segments.next().is_some_and(|segment| segment == wanted))
}

fn module_of(name: &str) -> Vec<String> {
    let mut module: Vec<String> = name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == "mod" || last == "lib") {
        module.pop();
    }
    module
}

/// What `lib.rs` re-exports, by name: `Error` -> `error`.
fn root_names(files: &[(String, String)]) -> BTreeMap<String, String> {
    let Some((_, text)) = files.iter().find(|(name, _)| name == "lib.rs") else { return BTreeMap::new() };
    read(text, &[])
        .paths
        .into_iter()
        .filter_map(|(mut path, _)| {
            path.retain(|segment| segment != "crate" && segment != "self");
            let name = path.last()?.clone();
            (path.len() > 1).then(|| (name, path.swap_remove(0)))
        })
        .collect()
}

/// What a file names: full paths, each with whether it stands in test code, and the words outside of test code.
struct Source {
    paths: Vec<(Vec<String>, bool)>,
    words: BTreeSet<String>,
}

fn read(text: &str, module: &[String]) -> Source {
    let tokens = tokens(text);
    let mut source = Source { paths: Vec::new(), words: BTreeSet::new() };
    // Inline modules around the current token: (name, depth of its brace, test code).
    let mut inside: Vec<(String, usize, bool)> = Vec::new();
    let whole_file_is_test = module.iter().any(|segment| segment == "tests");
    let (mut depth, mut at, mut cfg_test) = (0_usize, 0_usize, false);
    while at < tokens.len() {
        let test = whole_file_is_test || inside.iter().any(|(_, _, test)| *test);
        match tokens[at].as_str() {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                inside.retain(|(_, opened, _)| *opened < depth + 1);
            }
            ";" => cfg_test = false,
            "#" if tokens[at..].iter().take(7).map(String::as_str).eq(["#", "[", "cfg", "(", "test", ")", "]"]) => {
                cfg_test = true;
                at += 6;
            }
            "mod" if tokens.get(at + 2).is_some_and(|next| next == "{") => {
                inside.push((tokens[at + 1].clone(), depth + 1, cfg_test));
                cfg_test = false;
                depth += 1;
                at += 2;
            }
            word if is_word(word) => {
                if !test && !cfg_test {
                    source.words.insert(word.to_owned());
                }
                let starts = at == 0 || tokens[at - 1] != "::";
                if starts && tokens.get(at + 1).is_some_and(|next| next == "::") {
                    let mut here: Vec<String> = module.to_vec();
                    here.extend(inside.iter().map(|(name, _, _)| name.clone()));
                    let mut tree = Vec::new();
                    let end = path_tree(&tokens, at, &mut Vec::new(), &mut tree);
                    source
                        .words
                        .extend(tree.iter().flatten().filter(|word| !test && !cfg_test && is_word(word)).cloned());
                    source.paths.extend(tree.into_iter().map(|path| (absolute(path, &here), test || cfg_test)));
                    at = end;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    source
}

/// Reads the path or use-tree at `at` into full paths. Returns where it ends.
fn path_tree(tokens: &[String], mut at: usize, prefix: &mut Vec<String>, out: &mut Vec<Vec<String>>) -> usize {
    let base = prefix.len();
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("{") => {
                at += 1;
                while at < tokens.len() && tokens[at] != "}" {
                    if tokens[at] == "," {
                        at += 1;
                        continue;
                    }
                    let next = path_tree(tokens, at, prefix, out);
                    at = next.max(at + 1);
                }
                prefix.truncate(base);
                return at + 1;
            }
            Some(word) if is_word(word) || word == "*" => {
                prefix.push(word.to_owned());
                at += 1;
            }
            _ => break,
        }
        if tokens.get(at).is_some_and(|next| next == "::") && tokens.get(at + 1).is_some_and(|next| next != "<") {
            at += 1;
        } else {
            break;
        }
    }
    if prefix.len() > base {
        out.push(prefix.clone());
    }
    if tokens.get(at).is_some_and(|next| next == "as") {
        at += 2;
    }
    prefix.truncate(base);
    at
}

/// Resolves `crate`, `self`, `super` and the crate's own name against the module that says them.
fn absolute(path: Vec<String>, here: &[String]) -> Vec<String> {
    let mut base: Vec<String> = match path[0].as_str() {
        "crate" | "tower_kube_streaming" => return [vec!["crate".to_owned()], path[1..].to_vec()].concat(),
        "self" | "super" => here.to_vec(),
        _ => return path,
    };
    let mut rest = path.as_slice();
    while let Some((first, tail)) = rest.split_first() {
        match first.as_str() {
            "self" => {}
            "super" => drop(base.pop()),
            _ => break,
        }
        rest = tail;
    }
    [vec!["crate".to_owned()], base, rest.to_vec()].concat()
}

fn is_word(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Words and punctuation, without comments, strings and lifetimes.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let (mut out, mut i) = (Vec::new(), 0);
    while i < chars.len() {
        let c = chars[i];
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && chars[i] != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut open = 0;
            while i < chars.len() {
                if chars[i] == '/' && at(i + 1) == '*' {
                    open += 1;
                    i += 2;
                } else if chars[i] == '*' && at(i + 1) == '/' {
                    open -= 1;
                    i += 2;
                    if open == 0 {
                        break;
                    }
                } else {
                    i += 1;
                }
            }
        } else if c == '"' {
            i = string_end(&chars, i);
        } else if c == '\'' {
            // A character literal, or a lifetime.
            i = match (at(i + 1), at(i + 2)) {
                ('\\', _) => (i + 3..chars.len()).find(|&end| chars[end] == '\'').map_or(chars.len(), |end| end + 1),
                (_, '\'') => i + 3,
                _ => i + 1 + chars[i + 1..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').count(),
            };
        } else if c.is_alphanumeric() || c == '_' {
            let length = chars[i..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').count();
            let word: String = chars[i..i + length].iter().collect();
            let hashes = chars[i + length..].iter().take_while(|c| **c == '#').count();
            if matches!(word.as_str(), "r" | "br" | "cr") && at(i + length + hashes) == '"' {
                let start = i + length + hashes + 1;
                let closes = |end: &usize| {
                    chars[*end] == '"' && chars[end + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
                };
                i = (start..chars.len()).find(closes).map_or(chars.len(), |end| end + 1 + hashes);
            } else {
                out.push(word);
                i += length;
            }
        } else if c == ':' && at(i + 1) == ':' {
            out.push("::".to_owned());
            i += 2;
        } else {
            if !c.is_whitespace() {
                out.push(c.to_string());
            }
            i += 1;
        }
    }
    out
}

fn string_end(chars: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// The breaches in made-up sources.
fn breaches(files: &[(&str, &str)]) -> Vec<String> {
    let files: Vec<_> = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    violations(&files)
}

const LIB: (&str, &str) = ("lib.rs", "mod error; pub use error::{BoxError, Error};");

#[test]
fn a_path_that_points_up_is_found_in_every_form() {
    for text in [
        "use crate::layers::Translate;",
        "use crate::{error::Error, layers::{self, Translate}};",
        "fn f() { crate::layers::translate(); }",
        "use super::super::layers::Translate;",
        "mod inner { use super::super::super::layers as below; }",
        "use tower_kube_streaming::layers::Translate;",
        "macro_rules! m { () => { $crate::layers::x() } }",
        "fn f<'a>(c: char) { let _ = ('\\'', '\"', \"// \\\" \", r#\" \" \"#); crate::layers::x() }",
    ] {
        let found = breaches(&[LIB, ("upgrade/io.rs", text)]);
        assert!(!found.is_empty(), "{text}");
        assert!(found.iter().all(|line| line.contains("`upgrade` must not import `layers`")), "{text}: {found:?}");
    }
}

#[test]
fn a_path_along_the_arrows_passes() {
    for (name, text) in [
        ("upgrade/io.rs", "use crate::{error::Error, status::Status, upgrade::Target, BoxError}; use super::Session;"),
        ("services/kubelet.rs", "use crate::{layers::Translate, runtime::Runtime};"),
        ("upgrade/io.rs", "// crate::layers\n/* /* */ crate::layers */ const S: &str = \"crate::layers::X\";"),
        ("upgrade/io.rs", "#[cfg(test)] mod tests { use super::*; use crate::services::Kubelet; }"),
        ("upgrade/io.rs", "use hyper::upgrade::{OnUpgrade, Upgraded};"),
        ("spdy/connection.rs", "use super::{session::Session, frame}; use tokio::io::AsyncRead;"),
        ("websocket/client.rs", "use fastwebsockets::WebSocket;"),
        ("remote_command/relay.rs", "use crate::{spdy::session::Session, websocket::codec::Decoder};"),
    ] {
        assert_eq!(breaches(&[LIB, (name, text)]), Vec::<String>::new(), "{name}: {text}");
    }
}

/// What is off by default must not come in with something else.
#[test]
fn the_default_build_pulls_in_neither_tonic_nor_kube() {
    let tree = |features: &str| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args([
            "tree",
            "--offline",
            "--edges",
            "normal",
            "--prefix",
            "none",
        ]);
        let tree =
            cargo.args(["--package", "tower-kube-streaming", "--features", features]).output().expect("cargo runs");
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        let text = String::from_utf8_lossy(&tree.stdout).into_owned();
        let names = text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned);
        names.collect::<BTreeSet<String>>()
    };
    let (default, cri, kube) = (tree(""), tree("cri"), tree("kube"));
    for name in ["h2", "prost", "tonic"] {
        assert!(!default.contains(name) && cri.contains(name), "{name}: {default:?}");
    }
    for name in ["k8s-openapi", "kube", "kube-client", "kube-runtime", "sha2"] {
        assert!(!default.contains(name) && kube.contains(name), "{name}: {default:?}");
    }
    // TLS and its cryptography are the application's to choose.
    for name in ["aws-lc-rs", "openssl", "ring", "rustls"] {
        assert!(!kube.contains(name), "{name}: {kube:?}");
    }
}

#[test]
fn names_of_the_crate_root_count_as_their_module() {
    let found = breaches(&[LIB, ("spdy/stream.rs", "use crate::BoxError;")]);
    assert!(found[0].contains("`spdy` must not import `error`"), "{found:?}");
}

#[test]
fn the_special_rules_are_held() {
    for (name, text, wanted) in [
        ("spdy/stream.rs", "#[cfg(test)] mod tests { use crate::websocket::Codec; }", "`spdy` must not import"),
        ("layers/tunnel/mod.rs", "use crate::spdy::Stream;", "the tunnel copies bytes"),
        ("client/mod.rs", "use crate::layers::Tunnel;", "`client` must not import `layers`"),
        ("layers/mod.rs", "use crate::client::Executor;", "`layers` must not import `client`"),
        ("services/mod.rs", "use crate::adapters::kube;", "`services` must not import `adapters`"),
        ("layers/translate.rs", "use hyper::{body::Body, upgrade::on};", "only src/upgrade may name"),
        ("layers/translate.rs", "fn f(_: OnUpgrade) {}", "only src/upgrade may say `OnUpgrade`"),
        ("websocket/codec.rs", "use fastwebsockets::Frame;", "only src/websocket/client may say"),
        ("adapters/rustls.rs", "use tonic::Status;", "only src/adapters/cri may name"),
        ("adapters/cri/mod.rs", "use kube::Client;", "only src/adapters/kube may name"),
        ("layers/mod.rs", "fn f(_: k8s_openapi::api::core::v1::Pod) {}", "only src/adapters/kube may name"),
        ("websocket/codec.rs", "use tokio::io::AsyncRead;", "no I/O"),
        ("spdy/session/mod.rs", "fn f() { tokio::spawn(async {}); }", "no I/O"),
        ("services/upgrade_proxy.rs", "use crate::spdy::frame::Head;", "only src/remote_command may name"),
        ("layers/mod.rs", "use crate::*;", "hides what is imported"),
        ("invented/mod.rs", "", "has no rule"),
    ] {
        let found = breaches(&[LIB, (name, text)]);
        assert!(found.iter().any(|line| line.contains(wanted)), "{name}: {text}: {found:?}");
    }
}
