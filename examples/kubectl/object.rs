//! The object that `--filename` means.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
};

use serde_json::Value;

use super::failure::{Failure, printable};

/// Bytes of a file. etcd holds no object of more than 1.5 MiB; YAML may be longer than what is stored.
const LIMIT: u64 = 4 << 20;

/// An object out of a file: the server is not asked for its own.
#[derive(Debug)]
pub(crate) struct Object {
    /// Such as `apps/v1`.
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    pub(crate) value: Value,
}

/// The one object in `files`. `named`: the command line names another besides.
///
/// As in kubectl 1.37 stdin, `-`, always counts as several. That one also takes URLs, patterns and folders.
pub(crate) fn read(files: &[String], named: bool) -> Result<Object, Failure> {
    let stdin = |file: &&String| file.as_str() == "-";
    for file in files.iter().filter(|file| !stdin(file)) {
        is_file(file)?;
    }
    if named {
        return Err(Failure::error("resource/name arguments cannot be provided when a path is specified"));
    }
    let several = || Failure::error("cannot exec into multiple objects at a time");
    if files.iter().any(|file| stdin(&file)) {
        return Err(several());
    }
    let mut objects = Vec::new();
    for file in files {
        for document in documents(file)? {
            objects.push(Object::of(file, document)?);
        }
    }
    match <[Object; 1]>::try_from(objects) {
        Ok([object]) if !object.kind.ends_with("List") => Ok(object),
        _ => Err(several()),
    }
}

fn is_file(file: &str) -> Result<(), Failure> {
    if file.starts_with("http://") || file.starts_with("https://") {
        return Err(Failure::error(format!("{file:?} is a URL, and --filename takes local files alone")));
    }
    match fs::metadata(file) {
        Ok(data) if data.is_dir() => {
            Err(Failure::error(format!("{file:?} is a folder, and --filename takes single files alone")))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Failure::error(format!("the path {file:?} does not exist")))
        }
        Err(error) => Err(Failure::error(format!("the path {file:?} cannot be accessed: {error}"))),
    }
}

/// What is in a file, JSON or YAML, without what is empty.
fn documents(file: &str) -> Result<Vec<Value>, Failure> {
    let text = text(Path::new(file)).map_err(|error| Failure::error(printable(&format!("open {file}: {error}"))))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let json = || serde_json::Deserializer::from_str(text).into_iter().collect::<Result<Vec<Value>, _>>().ok();
    // JSON is nearly YAML: tabs are not.
    let values = match json() {
        Some(values) => values,
        None => serde_saphyr::from_multiple(text).map_err(|error| {
            Failure::error(printable(&format!("error parsing {file}: {}", error.without_snippet())))
        })?,
    };
    Ok(values.into_iter().filter(|value| !value.is_null()).collect())
}

fn text(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(file)?.take(LIMIT + 1).read_to_string(&mut text)?;
    if read as u64 > LIMIT {
        return Err(io::Error::other(format!("it is longer than {} MiB", LIMIT >> 20)));
    }
    Ok(text)
}

impl Object {
    fn of(file: &str, value: Value) -> Result<Self, Failure> {
        let wrong = |why: String| Failure::error(printable(&format!("unable to decode {file:?}: {why}")));
        let text = |pointer: &str| match value.pointer(pointer) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            Some(_) => Err(wrong(format!("{} is no string", pointer[1..].replace('/', ".")))),
        };
        // kubectl shows the object here. It may be a Secret.
        let kind = text("/kind")?.ok_or_else(|| wrong("Object 'Kind' is missing".to_owned()))?;
        let version = text("/apiVersion")?.ok_or_else(|| wrong("Object 'apiVersion' is missing".to_owned()))?;
        let name = text("/metadata/name")?.unwrap_or_default();
        if name.is_empty() && !kind.ends_with("List") {
            return Err(wrong("resource name may not be empty".to_owned()));
        }
        Ok(Self { namespace: text("/metadata/namespace")?, version, kind, name, value })
    }
}
