//! Where we say otherwise than the recordings: DESIGN.md lists the files and the reasons, and
//! `tests/transcripts/ours/` holds what we say instead.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
};

use super::{said::Said, transcript::folder};

/// A row of DESIGN.md's table.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    /// How the names begin of what differs.
    differs: Vec<String>,
    files: Vec<String>,
}

/// DESIGN.md's table.
pub(crate) fn table() -> Vec<Row> {
    let design = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/DESIGN.md")).expect("DESIGN.md is text");
    let (_, section) = design.split_once("\n## Deviations from recorded Kubernetes\n").expect("it has the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches(['|', ' ']).split(" | ").collect();
        let [what, _, differs, files] = cells[..] else { panic!("a row has four cells: {line}") };
        Row { what: what.to_owned(), differs: quoted(differs), files: quoted(files) }
    };
    section.lines().filter(|line| line.starts_with("| ")).skip(1).map(row).collect()
}

/// Fails on a difference that no row of DESIGN.md's table covers, on a recording in a row that it does not differ as the
/// row says, and where we no longer say what `ours/` holds. `REPLAY_WRITE=1` writes what we say there.
pub(crate) fn check(server: &str, all: &BTreeMap<String, (Said, Said)>) {
    let table = table();
    let mut faults = Vec::new();
    for row in &table {
        for file in row.files.iter().filter(|file| file.starts_with(&format!("{server}/"))) {
            if !all.contains_key(file) {
                faults.push(format!("{file}: listed under {:?}, but there is no such recording", row.what));
            }
        }
    }
    for (file, (ours, recorded)) in all {
        let differences = ours.differences(recorded);
        let rows: Vec<&Row> = table.iter().filter(|row| row.files.contains(file)).collect();
        let covers = |row: &Row, name: &str| row.differs.iter().any(|begin| name.starts_with(begin));
        for row in &rows {
            if !differences.keys().any(|name| covers(row, name)) {
                faults.push(format!("{file}: listed under {:?}, but does not differ so", row.what));
            }
        }
        for (name, value) in differences.iter().filter(|(name, _)| !rows.iter().any(|row| covers(row, name))) {
            let recorded = recorded.0.get(name).map_or("", String::as_str);
            faults
                .push(format!("{file}: {name} is in no row of DESIGN.md\n  recorded: {recorded}\n  ours:     {value}"));
        }
        let line = |(name, value): (&String, &String)| format!("{name}: {value}").trim_end().to_owned() + "\n";
        let text: String = differences.iter().map(line).collect();
        let path = folder().join("ours").join(format!("{file}.txt"));
        if env::var_os("REPLAY_WRITE").is_some() {
            let written = if text.is_empty() { fs::remove_file(&path).or(Ok(())) } else { fs::write(&path, &text) };
            written.unwrap_or_else(|error: std::io::Error| panic!("{}: {error}", path.display()));
        }
        if fs::read_to_string(&path).unwrap_or_default() != text {
            faults.push(format!("{file}: ours/{file}.txt holds something else than:\n{text}"));
        }
    }
    assert!(faults.is_empty(), "{} faults in {} recordings:\n{}", faults.len(), all.len(), faults.join("\n"));
}

/// Fails on an `ours/` file of no recording.
pub(crate) fn check_no_leftovers(names: &BTreeSet<String>) {
    for server in ["apiserver", "kubelet"] {
        for entry in fs::read_dir(folder().join("ours").join(server)).expect("there are deviations") {
            let path = entry.expect("an entry").path();
            let name = format!("{server}/{}", path.file_stem().and_then(|name| name.to_str()).expect("names are text"));
            assert!(names.contains(&name), "ours/{name}.txt is of no recording");
        }
    }
}
