//! Which files hold the Pods of a kubelet.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Context, Error};

/// The file, or in a folder those that hold YAML; upstream reads every file that is not hidden.
pub fn manifests(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>).context(path.display())?;
    let yaml =
        |file: &PathBuf| file.extension().is_some_and(|kind| ["yaml", "yml", "json"].iter().any(|of| kind == *of));
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).filter(yaml).collect();
    files.sort();
    if files.is_empty() { Err(format!("{}: no YAML in it", path.display()).into()) } else { Ok(files) }
}
