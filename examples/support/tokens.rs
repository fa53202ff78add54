//! Bearer tokens, in kube-apiserver's own file format: `token,user,uid,"group1,group2"`.

use std::{collections::HashMap, fs, path::Path};

use sha2::{Digest, Sha256};

use tower_kube_streaming::upgrade::Caller;

use super::{Context, Error, random_hex, write_private};

/// A line of the file.
#[derive(Clone, Debug)]
pub struct Token {
    pub secret: String,
    pub caller: Caller,
}

/// Reads the file, or makes one with a token for `admin` and one for `viewer`, whom the demo's roles let look.
pub fn load_or_create(path: &Path) -> Result<Vec<Token>, Error> {
    if !path.exists() {
        let (admin, viewer) = (random_hex::<16>(), random_hex::<16>());
        write_private(path, &format!("{admin},admin,admin,\"system:masters\"\n{viewer},viewer,viewer\n"))?;
    }
    load(path)
}

/// Reads the file. An unreadable line is an error: a token that silently does not work is worse.
pub fn load(path: &Path) -> Result<Vec<Token>, Error> {
    let text = fs::read_to_string(path).context(path.display())?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(number, line)| parse(line).context(format_args!("{}:{}", path.display(), number + 1))).collect()
}

fn parse(line: &str) -> Result<Token, &'static str> {
    let columns = columns(line);
    let [secret, name, uid, rest @ ..] = &columns[..] else { return Err("needs token, user name and uid") };
    if secret.is_empty() || name.is_empty() {
        return Err("token and user name must not be empty");
    }
    let groups = rest.first().map(String::as_str).unwrap_or_default();
    let groups = groups.split(',').map(str::trim).filter(|group| !group.is_empty());
    let mut caller = Caller::new(name, groups);
    caller.uid.clone_from(uid);
    Ok(Token { secret: secret.clone(), caller })
}

/// CSV columns: a comma between quotes separates nothing, and two quotes in them are one.
fn columns(line: &str) -> Vec<String> {
    let mut columns = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(char) = chars.next() {
        let column = columns.last_mut().expect("there is always one");
        match char {
            '"' if quoted && chars.peek() == Some(&'"') => column.extend(chars.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => columns.push(String::new()),
            _ => column.push(char),
        }
    }
    columns.iter().map(|column| column.trim().to_owned()).collect()
}

/// Who a token belongs to. Holds hashes only, so that the time a look-up takes says nothing about a token.
#[derive(Debug, Default)]
pub struct Tokens(HashMap<[u8; 32], Caller>);

impl Tokens {
    pub fn new(tokens: &[Token]) -> Self {
        Self(tokens.iter().map(|token| (hash(&token.secret), token.caller.clone())).collect())
    }

    pub fn caller(&self, secret: &str) -> Option<&Caller> {
        self.0.get(&hash(secret))
    }
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}
