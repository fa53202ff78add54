//! A file or a tree as an archive.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs::{self, File, Metadata},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use tar::{Builder, EntryType, Header};

use super::progress::Progress;

const BLOCK: u64 = 512;
const CHUNK: usize = 128 << 10;

/// What goes into an archive.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Path here, name there, what it is. Folders before what is in them.
    items: Vec<(PathBuf, PathBuf, Metadata)>,
}

impl Plan {
    /// Looks at `source`, a file, a link or a folder with all in it, which is to be called `name`. Links are not followed.
    pub(crate) fn new(source: &Path, name: &Path) -> Result<Self, String> {
        let mut items = Vec::new();
        let mut open = vec![(source.to_owned(), name.to_owned())];
        while let Some((path, name)) = open.pop() {
            let told = |error: io::Error| format!("{}: {error}", path.display());
            let metadata = path.symlink_metadata().map_err(told)?;
            if metadata.is_dir() {
                for entry in fs::read_dir(&path).map_err(told)? {
                    let entry = entry.map_err(told)?;
                    open.push((entry.path(), name.join(entry.file_name())));
                }
            }
            items.push((path, name, metadata));
        }
        Ok(Self { items })
    }

    /// Bytes of the archive, about.
    pub(crate) fn bytes(&self) -> u64 {
        let of = |metadata: &Metadata| if metadata.is_file() { metadata.len().next_multiple_of(BLOCK) } else { 0 };
        self.items.iter().map(|(.., metadata)| BLOCK + of(metadata)).sum()
    }

    /// Writes the archive: modes, links and names of one file, which go as hard links. What is no file, folder or link is
    /// told and left out.
    pub(crate) fn write(&self, to: impl Write, progress: &Progress) -> io::Result<()> {
        let mut tar = Builder::new(BufWriter::with_capacity(CHUNK, Counted(to, progress.clone())));
        tar.sparse(false);
        let mut seen: HashMap<(u64, u64), &Path> = HashMap::new();
        for (path, name, metadata) in &self.items {
            let told = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            let mut header = Header::new_gnu();
            header.set_metadata(metadata);
            if metadata.is_symlink() {
                header.set_size(0);
                tar.append_link(&mut header, name, fs::read_link(path).map_err(told)?)?;
            } else if metadata.is_dir() {
                header.set_size(0);
                tar.append_data(&mut header, name.join(""), io::empty())?;
            } else if !metadata.is_file() {
                progress.say(&format!("warning: skipping {}: neither a file nor a folder nor a link", path.display()));
            } else if let Some(first) = first_name(&mut seen, metadata, name) {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                tar.append_link(&mut header, name, first)?;
            } else {
                let file = Exactly(File::open(path).map_err(told)?, metadata.len());
                if metadata.len() > CHUNK as u64 {
                    tar.append_data(&mut header, name, BufReader::with_capacity(CHUNK, file)).map_err(told)?;
                } else {
                    tar.append_data(&mut header, name, file).map_err(told)?;
                }
            }
        }
        tar.into_inner()?.flush()
    }
}

/// The name under which this very file is in the archive already.
fn first_name<'a>(seen: &mut HashMap<(u64, u64), &'a Path>, metadata: &Metadata, name: &'a Path) -> Option<&'a Path> {
    if metadata.nlink() < 2 {
        return None;
    }
    match seen.entry((metadata.dev(), metadata.ino())) {
        Entry::Occupied(first) => Some(first.get()),
        Entry::Vacant(vacant) => {
            vacant.insert(name);
            None
        }
    }
}

/// As many bytes of a file as its header says: one that grows is cut there, one that shrinks is an error.
struct Exactly<R>(R, u64);

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let room = buf.len().min(usize::try_from(self.1).unwrap_or(usize::MAX));
        if room == 0 {
            return Ok(0);
        }
        match self.0.read(&mut buf[..room])? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was read")),
            read => {
                self.1 -= read as u64;
                Ok(read)
            }
        }
    }
}

struct Counted<W>(W, Progress);

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.0.write(buf)?;
        self.1.add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
