//! Archives of a container that means harm.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tar::{Builder, EntryType, Header};

use super::{
    kubectl::{
        progress::Progress,
        unpack::{Plan, REST, unpack},
    },
    support::{Scratch, skip},
};

/// An entry with these very bytes as names, which `tar` would not write.
fn entry(kind: EntryType, name: &str, link: &str, mode: u32, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(data.len() as u64);
    let fields = header.as_gnu_mut().expect("a GNU head");
    fields.name[..name.len()].copy_from_slice(name.as_bytes());
    fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, data).expect("in memory");
    let mut bytes = builder.into_inner().expect("in memory");
    // Without the end.
    bytes.truncate(bytes.len() - 1024);
    bytes
}

fn file(name: &str, data: &[u8]) -> Vec<u8> {
    entry(EntryType::Regular, name, "", 0o644, data)
}

fn link(name: &str, to: &str) -> Vec<u8> {
    entry(EntryType::Symlink, name, to, 0o777, b"")
}

fn hard_link(name: &str, to: &str) -> Vec<u8> {
    entry(EntryType::Link, name, to, 0o644, b"")
}

fn folder(name: &str) -> Vec<u8> {
    entry(EntryType::Directory, name, "", 0o755, b"")
}

/// A target beside a file that must not be touched.
struct Target {
    _scratch: Scratch,
    dir: PathBuf,
    outside: PathBuf,
}

impl Target {
    fn new() -> Self {
        let scratch = Scratch::new("archive");
        let (dir, outside) = (scratch.path().join("target"), scratch.path().join("outside"));
        fs::write(&outside, "untouched").expect("written");
        Self { _scratch: scratch, dir, outside }
    }

    fn take(&self, entries: &[Vec<u8>]) -> Result<(), String> {
        self.take_bytes(&[entries.concat(), vec![0; 1024]].concat())
    }

    fn take_bytes(&self, archive: &[u8]) -> Result<(), String> {
        let plan = Plan { source: "/src".into(), target: self.dir.clone(), modes: true };
        let done = unpack(archive, &plan, &Progress::new("test"));
        assert_eq!(fs::read_to_string(&self.outside).expect("it is there"), "untouched");
        done
    }

    fn has(&self, name: &str) -> bool {
        self.dir.join(name).symlink_metadata().is_ok()
    }
}

#[test]
fn names_that_leave_the_target_are_left_out() {
    let target = Target::new();
    let done = target.take(&[
        folder("src/"),
        file("src/../outside", b"harm"),
        file("src/a/../../x", b"harm"),
        file("src/b", b"b"),
    ]);
    assert_eq!(done, Ok(()));
    assert!(target.has("b") && !target.has("x") && !target.has("a"));
}

#[test]
fn names_that_were_not_asked_for_end_the_copy() {
    for name in ["other", "/src/a", "/etc/x", "../src/a", "sr"] {
        let target = Target::new();
        assert_eq!(target.take(&[file(name, b"harm")]), Err("tar contents corrupted".to_owned()), "{name}");
        assert!(!target.dir.exists(), "{name}");
    }
}

#[test]
fn links_out_of_the_target_are_left_out() {
    for to in ["/etc", "..", "../outside", "a/..", "a/../..", "d/../../outside"] {
        let target = Target::new();
        assert_eq!(target.take(&[folder("src/"), folder("src/d"), link("src/l", to), file("src/b", b"b")]), Ok(()));
        assert!(target.has("b") && !target.has("l"), "{to}");
    }
    let target = Target::new();
    let inside =
        [folder("src/"), folder("src/d"), link("src/d/up", "../b"), link("src/l", "d/up"), file("src/b", b"b")];
    assert_eq!(target.take(&inside), Ok(()));
    assert_eq!(fs::read(target.dir.join("l")).expect("through both"), b"b");
}

#[test]
fn nothing_is_written_through_a_link_whoever_made_it() {
    // One of the archive: inside, so it is made, and still not written through.
    let target = Target::new();
    let entries = [folder("src/"), folder("src/d"), link("src/l", "d"), file("src/l/x", b"harm"), folder("src/l/y")];
    assert_eq!(target.take(&entries), Ok(()));
    assert!(target.has("l") && !target.has("d/x") && !target.has("d/y"));

    // One that was there already.
    let target = Target::new();
    fs::create_dir(&target.dir).expect("made");
    symlink("..", target.dir.join("l")).expect("made");
    symlink(&target.outside, target.dir.join("f")).expect("made");
    let entries = [folder("src/"), file("src/l/outside", b"harm"), file("src/f", b"new")];
    assert_eq!(target.take(&entries), Ok(()));
    assert_eq!(fs::read(target.dir.join("f")).expect("replaced"), b"new");
    assert!(!target.dir.join("f").is_symlink());

    // The file that was asked for, into a folder where the archive has put a link first: it leads through one of the user's.
    let target = Target::new();
    fs::create_dir(&target.dir).expect("made");
    symlink("..", target.dir.join("l")).expect("made");
    let entries = [folder("src/"), link("src/src", "l/outside"), file("src", b"harm")];
    assert_eq!(target.take(&entries), Ok(()));
    assert_eq!(fs::read(target.dir.join("src")).expect("replaced"), b"harm");
    assert!(!target.dir.join("src").is_symlink());

    // Between files of one folder, which stays open: another name of it, and one in its own place.
    let target = Target::new();
    let entries = [file("src/d/a", b"a"), link("src/l", "d"), file("src/l/x", b"harm"), file("src/d/b", b"b")];
    assert_eq!(target.take(&entries), Ok(()));
    assert!(target.has("d/a") && target.has("d/b") && !target.has("d/x"));
    assert!(target.take(&[file("src/d/a", b"a"), link("src/d", "e"), file("src/d/b", b"harm")]).is_err());
    assert_eq!(fs::read(target.dir.join("d/b")).expect("as it was"), b"b");

    // A folder in the place of a link.
    let target = Target::new();
    assert!(target.take(&[folder("src/"), folder("src/d"), link("src/l", "d"), folder("src/l")]).is_err());
}

#[test]
fn a_hard_link_is_to_a_file_of_the_archive_or_an_error() {
    let target = Target::new();
    assert_eq!(target.take(&[file("src/a", b"a"), hard_link("src/b", "src/a")]), Ok(()));
    let inode = |name: &str| target.dir.join(name).metadata().expect("it is there").ino();
    assert_eq!(inode("a"), inode("b"));
    for to in ["../outside", "/etc/passwd", "src/../../outside", "src/none", "src/l", "outside"] {
        let target = Target::new();
        fs::create_dir(&target.dir).expect("made");
        symlink(&target.outside, target.dir.join("l")).expect("made");
        assert!(target.take(&[folder("src/"), hard_link("src/b", to)]).is_err(), "{to}");
        assert!(!target.has("b"), "{to}");
    }
    // What the user has in the target's place, or in a file's, is not given up for a link to itself.
    for entry in [hard_link("src", "src"), hard_link("src/b", "src/b"), hard_link("src", "src/b")] {
        for is_file in [true, false] {
            let target = Target::new();
            let kept = if is_file { target.dir.clone() } else { target.dir.join("b") };
            fs::create_dir_all(kept.parent().expect("it has one")).expect("made");
            fs::write(&kept, "mine").expect("written");
            assert!(target.take(std::slice::from_ref(&entry)).is_err());
            assert_eq!(fs::read(&kept).expect("it is there"), b"mine");
        }
    }
}

#[test]
fn an_archive_that_is_not_whole_is_an_error_wherever_it_ends() {
    let whole = [folder("src/"), file("src/a", &[7; 700]), file("src/b", b"b")].concat();
    for cut in (0..=whole.len()).step_by(256) {
        let target = Target::new();
        assert!(target.take_bytes(&whole[..cut]).is_err(), "cut at {cut} of {}", whole.len());
    }
    // An end of one block, or a file of zeros, is none.
    let target = Target::new();
    assert!(target.take_bytes(&[whole.clone(), vec![0; 512]].concat()).is_err());
    for zeros in [512, 1024, 4096] {
        let cut = file("src/z", &vec![0; zeros]);
        assert!(target.take_bytes(&cut).is_err(), "{zeros} zeros and no end");
        assert!(target.take_bytes(&[cut, vec![0; 512]].concat()).is_err(), "{zeros} zeros and half an end");
    }
    assert_eq!(target.take(&[file("src/z", &[0; 700])]), Ok(()));
    assert_eq!(target.take_bytes(&[whole, vec![0; 10240]].concat()), Ok(()));
}

#[test]
fn a_file_gets_its_mode_whatever_the_umask_takes_away() {
    let target = Target::new();
    let modes = [0o777, 0o666, 0o644, 0o400, 0o000];
    let entries = modes.map(|mode| entry(EntryType::Regular, &format!("src/{mode:o}"), "", mode, b"all"));
    for _ in 0..2 {
        assert_eq!(target.take(&entries), Ok(()));
        for mode in modes {
            let metadata = target.dir.join(format!("{mode:o}")).metadata().expect("it is there");
            assert_eq!((metadata.mode() & 0o7777, metadata.len()), (mode, 3));
        }
    }
}

#[test]
fn set_id_bits_and_devices_are_left_out() {
    let target = Target::new();
    let device = entry(EntryType::Char, "src/device", "", 0o666, b"");
    let fifo = entry(EntryType::Fifo, "src/fifo", "", 0o666, b"");
    let suid = entry(EntryType::Regular, "src/suid", "", 0o6755, b"#!");
    assert_eq!(target.take(&[device, fifo, suid]), Ok(()));
    assert!(!target.has("device") && !target.has("fifo"));
    assert_eq!(target.dir.join("suid").metadata().expect("it is there").mode() & 0o7777, 0o755);
}

#[test]
fn a_name_without_end_is_not_kept_in_memory() {
    /// A long name's head, and then an `a` for ever.
    struct Endless(io::Cursor<Vec<u8>>, u64);
    impl io::Read for Endless {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buf)? {
                0 => {
                    buf.fill(b'a');
                    self.1 += buf.len() as u64;
                    assert!(self.1 < 64 << 20, "it reads on");
                    Ok(buf.len())
                }
                read => Ok(read),
            }
        }
    }
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
        let mut head = Header::new_gnu();
        head.set_entry_type(kind);
        head.set_size(1 << 40);
        head.set_path("src/a").expect("short");
        head.set_cksum();
        let target = Target::new();
        let plan = Plan { source: "src".into(), target: target.dir.clone(), modes: true };
        let endless = Endless(io::Cursor::new(head.as_bytes().to_vec()), 0);
        let why = unpack(endless, &plan, &Progress::new("test")).expect_err("too long");
        assert!(why.contains("too long"), "{kind:?}: {why}");
    }
}

#[test]
fn a_file_goes_where_the_user_said() {
    let one = |target: &Path| {
        let plan = Plan { source: "/some/./name/../src".into(), target: target.to_owned(), modes: false };
        let archive = [entry(EntryType::Regular, "some/src", "", 0o644, b"here"), vec![0; 1024]].concat();
        unpack(&*archive, &plan, &Progress::new("test"))
    };
    let scratch = Scratch::new("archive");
    let (new, dir) = (scratch.path().join("new/folder/file"), scratch.dir("dir"));
    assert_eq!((one(&new), one(&dir)), (Ok(()), Ok(())));
    assert_eq!(fs::read(new).expect("it is there"), b"here");
    assert_eq!(fs::read(dir.join("src")).expect("it is there"), b"here");
}

/// Whether tar could read everything is known by its exit code alone: an archive without a file is a whole one too.
#[test]
fn the_rest_of_an_archive_comes_with_the_exit_code_of_tar() {
    let scratch = Scratch::new("archive");
    fs::write(scratch.path().join("a b"), [7; 3000]).expect("written");
    for shell in [&["sh"][..], &["bash", "--posix"], &["busybox", "sh"]] {
        if Command::new(shell[0]).arg("--help").output().is_err() {
            skip(&format!("there is no {}", shell[0]));
            continue;
        }
        let run = |script: &str, source: &str, begin: &str| -> Output {
            let mut command = Command::new(shell[0]);
            command.args(&shell[1..]).args(["-c", script, "sh", source, begin]);
            command.current_dir(scratch.path()).output().expect("it runs")
        };
        // Of the same shell: busybox has a tar of its own.
        let plain = |source: &str| run(r#"tar cf - "$1""#, source, "");
        let rest = |source: &str, begin: &str| run(REST, source, begin);
        let whole = plain("a b").stdout;
        for begin in [1, 1000, whole.len(), whole.len() + 1] {
            let done = rest("a b", &begin.to_string());
            assert!(done.status.success() && done.stdout == whole[begin - 1..], "{shell:?} from {begin}");
        }
        let code = |done: Output| done.status.code().expect("it exits");
        let wanted = code(plain("none"));
        assert_ne!(wanted, 0);
        assert_eq!(code(rest("none", "2")), wanted, "{shell:?}");
        assert_ne!(code(rest("a b", "x")), 0, "{shell:?}: tail failed");
    }
}
