//! Writes initramfs archives: cpio in the "newc" format (`Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! The kernel unpacks archives one after another from one file, so what stays the same is kept as an archive of its own.
//! Nothing is compressed: unpacking is what takes time in a guest without hardware virtualisation.

use anyhow::{Context, bail};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Component, Path},
};

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;

/// An archive under construction. Everything in it belongs to root; folders on the way to a file are added by themselves.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    /// Paths that are in it, without the leading slash.
    paths: BTreeSet<String>,
}

impl Archive {
    /// Whether something is at `path`, which begins with a slash.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.paths.contains(path.trim_start_matches('/'))
    }

    /// Adds an empty folder.
    pub(crate) fn folder(&mut self, path: &str) -> anyhow::Result<()> {
        self.parents(path)?;
        self.entry(path, FOLDER, &[])
    }

    /// Adds a file; `permissions` are its low nine bits of mode.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) -> anyhow::Result<()> {
        self.parents(path)?;
        self.entry(path, FILE | (permissions & 0o777), contents)
    }

    /// Adds a symbolic link to `target`.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> anyhow::Result<()> {
        self.parents(path)?;
        self.entry(path, SYMLINK, target.as_bytes())
    }

    /// Adds the file or folder `from` of this machine; links are followed.
    pub(crate) fn copy(&mut self, from: &Path, path: &str) -> anyhow::Result<()> {
        let context = || format!("read {}", from.display());
        let about = fs::metadata(from).with_context(context)?;
        if !about.is_dir() {
            let contents = fs::read(from).with_context(context)?;
            return self.file(path, about.permissions().mode(), &contents);
        }
        self.folder(path)?;
        for child in fs::read_dir(from).with_context(context)? {
            let child = child.with_context(context)?;
            let name = child.file_name().into_string().ok().with_context(|| format!("a name in {}", from.display()))?;
            self.copy(&child.path(), &format!("{path}/{name}"))?;
        }
        Ok(())
    }

    /// The finished archive, a multiple of four bytes long so that another one can follow.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.append("TRAILER!!!", 0, &[], 0);
        self.bytes
    }

    fn parents(&mut self, path: &str) -> anyhow::Result<()> {
        let parent = Path::new(path).parent().with_context(|| format!("{path} is no path in a guest"))?;
        let mut folder = String::new();
        for part in parent.components() {
            if let Component::Normal(name) = part {
                folder = format!("{folder}/{}", name.to_string_lossy());
                self.entry(&folder, FOLDER, &[])?;
            }
        }
        Ok(())
    }

    /// Adds an entry unless its path is taken: what was there first stays.
    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) -> anyhow::Result<()> {
        let name = path.trim_start_matches('/').to_owned();
        if name.is_empty() || !self.paths.insert(name.clone()) {
            return Ok(());
        }
        let Ok(size) = u32::try_from(contents.len()) else { bail!("{path} is too large for a cpio archive") };
        self.append(&name, mode, contents, size);
        Ok(())
    }

    fn append(&mut self, name: &str, mode: u32, contents: &[u8], size: u32) {
        // Inode numbers only tell hard links apart, which there are none of.
        let inode = self.paths.len();
        let name_size = name.len() + 1;
        let fields = format!(
            "070701{inode:08X}{mode:08X}{uid:08X}{gid:08X}{links:08X}{time:08X}{size:08X}{device:016X}{special:016X}{name_size:08X}{check:08X}",
            uid = 0,
            gid = 0,
            links = 1,
            time = 0,
            device = 0,
            special = 0,
            check = 0
        );
        self.bytes.extend(fields.as_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_reads_back_as_it_was_written() {
        let mut archive = Archive::default();
        archive.file("/a/b/c", 0o755, b"hello").unwrap();
        archive.symlink("/a/l", "b/c").unwrap();
        archive.folder("/tmp").unwrap();
        let expected = [
            ("a", FOLDER, &b""[..]),
            ("a/b", FOLDER, b""),
            ("a/b/c", FILE | 0o755, b"hello"),
            ("a/l", SYMLINK, b"b/c"),
            ("tmp", FOLDER, b""),
        ];
        assert_eq!(read(&archive.finish()), expected.map(|(name, mode, data)| (name.to_owned(), mode, data.to_vec())));
    }

    #[test]
    fn what_was_there_first_stays() {
        let mut archive = Archive::default();
        archive.file("/bin/ip", 0o755, b"real").unwrap();
        archive.symlink("/bin/ip", "busybox").unwrap();
        assert!(archive.contains("/bin/ip"));
        assert_eq!(read(&archive.finish()).last().unwrap().2, b"real");
    }

    #[test]
    fn archives_can_follow_one_another() {
        for length in 0..8 {
            let mut archive = Archive::default();
            archive.file("/f", 0o644, &vec![b'x'; length]).unwrap();
            assert_eq!(archive.finish().len() % 4, 0, "after a file of {length} bytes");
        }
    }

    /// Name, mode, contents of every entry.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..109 + name_size].to_vec()).unwrap();
            let at = (110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return entries;
            }
            entries.push((name, mode, bytes[at..at + size].to_vec()));
            bytes = &bytes[(at + size).next_multiple_of(4)..];
        }
    }
}
