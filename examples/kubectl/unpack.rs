//! An archive that a container sends, as files here. The container is not trusted: nothing is written outside the target,
//! none of its links is written through, and set-id bits are dropped.

use std::{
    cell::Cell,
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{self, Read, Write as _},
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt as _,
            fs::{PermissionsExt as _, symlink},
        },
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat},
    io::Errno,
};
use tar::{Archive, Entry, EntryType};

use super::{failure::printable, progress::Progress};

/// Bytes of an entry's heads: names of GNU and PAX archives are held in memory.
const HEADS: u64 = 1 << 20;
/// An archive ends with two blocks of zeros.
const END: usize = 1024;
const CHUNK: usize = 128 << 10;
/// A shell's script for what is left of an archive: of `$1`, from byte `$2` on. Its exit code is tar's, by way of a third
/// stream, for that of a pipe is tail's; tar has one for what it could not read, and ends the archive in order then.
pub(crate) const REST: &str = r#"exec 4>&1
code=$({ { tar cf - "$1"; echo $? >&3; } | tail -c+"$2" >&4; } 3>&1) || exit
exit "${code:-1}""#;

/// Where an archive goes.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What was asked for; tar drops a slash before it.
    pub(crate) source: String,
    pub(crate) target: PathBuf,
    /// Whether modes are taken over.
    pub(crate) modes: bool,
}

/// Unpacks. An archive that is not whole is an error.
pub(crate) fn unpack(from: impl Read, plan: &Plan, progress: &Progress) -> Result<(), String> {
    let room = Rc::new(Cell::new(None));
    let zeros = Rc::new(Cell::new(0));
    let guarded = Guarded { from, room: room.clone(), zeros: zeros.clone() };
    let mut archive = Archive::new(guarded);
    let corrupted = |error: io::Error| format!("tar contents corrupted: {}", printable(&error.to_string()));
    let mut unpacking = Unpacking::new(plan, progress);
    let mut entries = archive.entries().map_err(corrupted)?;
    loop {
        room.set(Some(HEADS));
        // What is in a file is no end. Its padding is less than a block, and so cannot stand in for one.
        zeros.set(0);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(corrupted)?;
        room.set(None);
        unpacking.entry(&mut entry)?;
        // What was not wanted of it is not part of the next one's heads.
        io::copy(&mut entry, &mut io::sink()).map_err(corrupted)?;
    }
    room.set(None);
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(corrupted)?;
    if zeros.get() < END {
        return Err("unexpected EOF: the archive is not whole".to_owned());
    }
    unpacking.finish()
}

struct Unpacking<'a> {
    plan: &'a Plan,
    progress: &'a Progress,
    prefix: Vec<&'a OsStr>,
    /// Folders and their modes, which may forbid to write there until all is done.
    folders: Vec<(PathBuf, u32)>,
    /// The folder of the last file. The next one is most often in the same.
    current: Option<(PathBuf, OwnedFd)>,
    buffer: Vec<u8>,
    /// The target was made, or was there.
    begun: bool,
}

impl<'a> Unpacking<'a> {
    fn new(plan: &'a Plan, progress: &'a Progress) -> Self {
        Self {
            plan,
            progress,
            prefix: cleaned(&plan.source),
            folders: Vec::new(),
            current: None,
            buffer: vec![0; CHUNK],
            begun: false,
        }
    }

    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), String> {
        let name = entry.path_bytes().into_owned();
        let shown = printable(&String::from_utf8_lossy(&name));
        let Some(names) = self.below(&name)? else {
            self.progress.say(&format!("warning: file {shown:?} is outside target destination, skipping"));
            return Ok(());
        };
        let told = |error: io::Error| format!("{shown}: {error}");
        let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
        let Some(path) = self.place(&names).map_err(told)? else {
            self.progress.say(&format!("warning: skipping {shown:?}: its folder is a link"));
            return Ok(());
        };
        match entry.header().entry_type() {
            EntryType::Directory => self.folder(path, mode).map_err(told),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(entry, &names, path, mode).map_err(told)
            }
            EntryType::Symlink => {
                let link = entry.link_name_bytes().unwrap_or_default().into_owned();
                if stays_inside(&names, &link) {
                    remove(&path).and_then(|()| symlink(OsStr::from_bytes(&link), &path)).map_err(told)
                } else {
                    let to = printable(&String::from_utf8_lossy(&link));
                    self.progress
                        .say(&format!("warning: skipping symlink: {shown:?} -> {to:?}, which leaves the target"));
                    Ok(())
                }
            }
            // What was asked for comes first, and is no second name.
            EntryType::Link if !names.is_empty() => {
                let first = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.hard_link(&first, &path).map_err(|why| format!("{shown}: {why}"))
            }
            EntryType::Link => Err(format!("{shown}: a hard link in the place of what was asked for")),
            kind => {
                self.progress.say(&format!("warning: skipping {shown:?}: {kind:?} is no file, folder or link"));
                Ok(())
            }
        }
    }

    /// The names below the target that an entry's name means. `None`: it means to leave it.
    fn below<'n>(&self, name: &'n [u8]) -> Result<Option<Vec<&'n OsStr>>, String> {
        let names: Vec<&OsStr> = parts(name).collect();
        if name.starts_with(b"/") || !names.starts_with(&self.prefix) {
            return Err("tar contents corrupted".to_owned());
        }
        let rest = names[self.prefix.len()..].to_vec();
        Ok((!rest.iter().any(|name| *name == "..")).then_some(rest))
    }

    /// The path for these names; the folders on the way are made. `None`: one of them is no folder but a link.
    fn place(&mut self, names: &[&OsStr]) -> io::Result<Option<PathBuf>> {
        let mut path = self.plan.target.clone();
        let Some((last, folders)) = names.split_last() else {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            return Ok(Some(path));
        };
        // The target itself is the user's, and may be a link.
        if !self.begun {
            fs::create_dir_all(&path)?;
            self.begun = true;
        }
        let known = self.current.as_ref().and_then(|(current, _)| current.strip_prefix(&path).ok());
        if known.is_some_and(|known| known.iter().eq(folders.iter().copied())) {
            path.extend(names);
            return Ok(Some(path));
        }
        for folder in folders {
            path.push(folder);
            match path.symlink_metadata() {
                Ok(there) if there.is_symlink() => return Ok(None),
                Ok(_) => {}
                Err(_) => fs::create_dir(&path)?,
            }
        }
        path.push(last);
        Ok(Some(path))
    }

    fn folder(&mut self, path: PathBuf, mode: u32) -> io::Result<()> {
        match path.symlink_metadata() {
            Ok(there) if there.is_symlink() && path != self.plan.target => {
                Err(io::Error::other("a link is in its place"))
            }
            // One that was there keeps its mode.
            Ok(_) if path.is_dir() => Ok(()),
            _ => {
                fs::create_dir(&path)?;
                self.folders.push((path, mode));
                Ok(())
            }
        }
    }

    fn file<R: Read>(
        &mut self,
        from: &mut Entry<'_, R>,
        names: &[&OsStr],
        mut path: PathBuf,
        mode: u32,
    ) -> io::Result<()> {
        let mut is_file = true;
        let mut file = if names.is_empty() && !path.is_dir() {
            // Where the user has said: through a link, into a device.
            let file = File::create(&path)?;
            is_file = file.metadata()?.is_file();
            file
        } else {
            if names.is_empty() {
                // Into a folder. What is there by that name the archive may have made.
                path.extend(self.prefix.last());
            }
            self.create(&path, mode)?
        };
        loop {
            match from.read(&mut self.buffer)? {
                0 => break,
                read => file.write_all(&self.buffer[..read])?,
            }
        }
        // What it was made with may be less.
        if self.plan.modes && is_file && file.metadata()?.permissions().mode() & 0o777 != mode {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    /// A new file, in the place of what is there.
    fn create(&mut self, path: &Path, mode: u32) -> io::Result<File> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let current = match self.current.take() {
            Some((current, opened)) if current == folder => (current, opened),
            _ => (folder.to_owned(), self.open(folder)?),
        };
        let (_, folder) = self.current.insert(current);
        let mode = Mode::from_raw_mode(if self.plan.modes { mode } else { 0o666 });
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let created = match openat(&*folder, name, flags, mode) {
            // A link rather than what it points to. A folder stays, and is an error then.
            Err(Errno::EXIST) => {
                unlinkat(&*folder, name, AtFlags::empty())?;
                openat(&*folder, name, flags, mode)
            }
            created => created,
        };
        Ok(created?.into())
    }

    /// Opens a folder to make files in. The target itself is the user's, and may be a link.
    fn open(&self, folder: &Path) -> io::Result<OwnedFd> {
        let link = if folder == self.plan.target { OFlags::empty() } else { OFlags::NOFOLLOW };
        // One may write to a folder that one may not read.
        #[cfg(target_os = "linux")]
        let access = OFlags::PATH;
        #[cfg(not(target_os = "linux"))]
        let access = OFlags::RDONLY;
        // `""` is the working directory.
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        Ok(openat(CWD, folder, access | link | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Another name of a file that came before.
    fn hard_link(&mut self, first: &[u8], path: &Path) -> Result<(), String> {
        let outside = || "a hard link to what is not in the archive".to_owned();
        let names = self.below(first).ok().flatten().ok_or_else(outside)?;
        let told = |error: io::Error| error.to_string();
        let first = self.place(&names).map_err(told)?.ok_or_else(outside)?;
        if first == path || !first.symlink_metadata().map_err(told)?.is_file() {
            return Err(outside());
        }
        remove(path).and_then(|()| fs::hard_link(first, path)).map_err(told)
    }

    fn finish(self) -> Result<(), String> {
        // The innermost first, while the outer ones can still be searched.
        for (path, mode) in self.folders.iter().rev().filter(|_| self.plan.modes) {
            let done = fs::set_permissions(path, Permissions::from_mode(*mode));
            done.map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }
}

/// Takes away what is in a file's place, a link rather than what it points to. A folder stays, and is an error then.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn parts(path: &[u8]) -> impl Iterator<Item = &OsStr> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(OsStr::from_bytes)
}

/// The names that tar gives what it was asked for: without `..`, `.` and slashes in front.
fn cleaned(source: &str) -> Vec<&OsStr> {
    let mut names = Vec::new();
    for part in parts(source.as_bytes()) {
        if part == ".." {
            names.pop();
        } else {
            names.push(part);
        }
    }
    names
}

/// Whether a link at `names` points into the tree. Its folder is a real one, so `..` in front mean what they say; behind a
/// name, which may be a link, they do not.
fn stays_inside(names: &[&OsStr], link: &[u8]) -> bool {
    let parts: Vec<&OsStr> = parts(link).collect();
    let up = parts.iter().take_while(|part| **part == "..").count();
    let depth = names.len().checked_sub(1);
    !link.starts_with(b"/") && depth.is_some_and(|depth| up <= depth) && !parts[up..].iter().any(|part| *part == "..")
}

/// The archive, with a limit on what may be read at once and an eye on how it ends.
struct Guarded<R> {
    from: R,
    room: Rc<Cell<Option<u64>>>,
    zeros: Rc<Cell<usize>>,
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buf)?;
        if let Some(room) = self.room.get() {
            let left = room.checked_sub(read as u64).ok_or_else(|| io::Error::other("a name is too long"))?;
            self.room.set(Some(left));
        }
        let last = &buf[read.saturating_sub(END)..read];
        let tail = last.iter().rev().take_while(|byte| **byte == 0).count();
        self.zeros.set(if tail == read { self.zeros.get() + read } else { tail });
        Ok(read)
    }
}
