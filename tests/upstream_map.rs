//! Fails when `tests/UPSTREAM.md` names a test of ours that does not exist.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Where tests of ours live.
const PLACES: &[&str] = &["src", "tests", "testing", "examples", "fuzz/fuzz_targets"];

/// The rows of all tables: upstream's name, and what stands beside it.
fn rows(text: &str) -> Vec<(&str, &str)> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "))
        .filter(|(upstream, _)| *upstream != "upstream")
        .collect()
}

/// What is wrong with a row, if anything.
fn fault(ours: &str, functions: &BTreeSet<String>) -> Option<String> {
    match ours {
        "step 2" | "step 3" | "step 4" | "step 5" => None,
        ours if ours.starts_with("no: ") && ours.len() > "no: ".len() => None,
        ours => {
            let names: Vec<&str> = ours.split(", ").collect();
            let name =
                |quoted: &&str| quoted.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')).map(str::to_owned);
            names.iter().find_map(|quoted| match name(quoted) {
                None => Some(format!("{quoted:?} is neither a name in backticks nor a word this table knows")),
                Some(name) if functions.contains(&name) => None,
                Some(name) => Some(format!("there is no `fn {name}`")),
            })
        }
    }
}

/// The name of every function in a source.
fn functions(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().filter_map(|line| {
        let (before, rest) = line.split_once("fn ")?;
        let declares = before.split_whitespace().all(|word| matches!(word, "pub" | "pub(crate)" | "async" | "const"));
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        (declares && !name.is_empty()).then_some(name)
    })
}

fn collect(dir: &Path, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.extend(functions(&fs::read_to_string(&path).expect("a source file is text")));
        }
    }
}

#[test]
fn every_test_of_ours_in_the_map_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = BTreeSet::new();
    PLACES.iter().for_each(|place| collect(&root.join(place), &mut all));
    let text = fs::read_to_string(root.join("tests/UPSTREAM.md")).expect("the map is there");
    let rows = rows(&text);
    assert!(rows.len() > 150, "the map has only {} rows", rows.len());
    let mut seen = BTreeSet::new();
    let faults: Vec<String> = rows
        .iter()
        .filter_map(|(upstream, ours)| {
            let twice = (!seen.insert(*upstream)).then(|| "stands there twice".to_owned());
            twice.or_else(|| fault(ours, &all)).map(|why| format!("{upstream}: {why}"))
        })
        .collect();
    assert!(faults.is_empty(), "tests/UPSTREAM.md:\n  {}", faults.join("\n  "));
}

#[test]
fn a_missing_name_is_found() {
    let known: BTreeSet<String> =
        functions("    async fn a_thing_holds() {\n// fn not_this\nlet x = \"fn nor_this\";").collect();
    assert_eq!(known.iter().collect::<Vec<_>>(), ["a_thing_holds"]);
    let table =
        "| upstream | ours |\n|---|---|\n| TestA | `a_thing_holds` |\n| TestB | `a_thing_holds`, `it_does_not` |\n";
    assert_eq!(rows(table), [("TestA", "`a_thing_holds`"), ("TestB", "`a_thing_holds`, `it_does_not`")]);
    assert_eq!(fault("`a_thing_holds`", &known), None);
    assert!(fault("`a_thing_holds`, `it_does_not`", &known).is_some_and(|why| why.contains("it_does_not")));
    assert!(fault("step 9", &known).is_some() && fault("no: ", &known).is_some() && fault("", &known).is_some());
}
