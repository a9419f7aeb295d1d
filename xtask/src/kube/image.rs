//! Container images without a container engine: files in, an archive in the OCI image layout out, which
//! `ctr images import` and `podman load` read, and `docker load` by a manifest of its own kind beside it.
//!
//! The same files give the same bytes: no time, owner or order of this machine gets into an archive. Formats: OCI image
//! specification 1.1, `image-layout.md`, `manifest.md`, `config.md` and `layer.md`; Docker image specification 1.2, "Combined Image
//! JSON + Filesystem Changeset Format".

use anyhow::{Context, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    env, fs,
    io::Write,
    path::{Component, Path, PathBuf},
    process::Command,
};
use tar::{Builder, EntryType, Header};

/// An image of one layer.
#[derive(Default)]
pub(crate) struct Image {
    /// What pods call it, with its tag: `localhost/agent:1`. With another tag than `latest`, kubelets take what the node
    /// has and ask no registry.
    pub(crate) name: String,
    /// The program that runs, and its first arguments.
    pub(crate) entrypoint: Vec<String>,
    /// Variables, `NAME=value`.
    pub(crate) environment: Vec<String>,
    /// By path in the image, without a leading slash.
    entries: BTreeMap<String, Entry>,
}

enum Entry {
    Folder,
    /// Low nine bits of mode, contents.
    File(u32, Vec<u8>),
    Symlink(String),
}

impl Image {
    /// An empty image, whose containers start with `entrypoint`.
    pub(crate) fn new(name: &str, entrypoint: &[&str]) -> Self {
        let entrypoint = entrypoint.iter().map(|word| (*word).to_owned()).collect();
        Self { name: name.to_owned(), entrypoint, ..Self::default() }
    }

    /// Adds an empty folder and those above it.
    pub(crate) fn folder(&mut self, path: &str) -> anyhow::Result<()> {
        self.add(path, Entry::Folder)
    }

    /// Adds a file and the folders above it; `permissions` are the low nine bits of its mode.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, contents: impl Into<Vec<u8>>) -> anyhow::Result<()> {
        self.add(path, Entry::File(permissions & 0o777, contents.into()))
    }

    /// Adds a symbolic link to `target`, and the folders above it.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> anyhow::Result<()> {
        self.add(path, Entry::Symlink(target.to_owned()))
    }

    /// Adds a program of this machine. An image has no other files than those it is given, so a program that asks for
    /// shared libraries is refused.
    pub(crate) fn program(&mut self, path: &str, from: &Path) -> anyhow::Result<()> {
        let contents = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        if !is_static(&contents).with_context(|| format!("read {}", from.display()))? {
            bail!("{} is linked dynamically: an image needs a static program", from.display());
        }
        self.file(path, 0o755, contents)
    }

    /// The image as an archive.
    pub(crate) fn archive(&self) -> anyhow::Result<Vec<u8>> {
        let layer = self.layer().context("write the layer")?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Env": self.environment},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        let config = serde_json::to_vec(&config).context("write the image's configuration")?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let manifest = serde_json::to_vec(&manifest).context("write the manifest")?;
        let mut named = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        let tag = self.name.rsplit_once(':').map_or("", |(_, tag)| tag);
        // The specification knows only the tag; containerd and Docker look for the whole name in the first one.
        named["annotations"] = json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag});
        let index =
            json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [named]});

        let mut archive = Builder::new(Vec::new());
        append_file(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append_file(&mut archive, "index.json", 0o644, &serde_json::to_vec(&index).context("write the index")?)?;
        let docker = json!([{"Config": place(&config), "RepoTags": [self.name], "Layers": [place(&layer)]}]);
        append_file(&mut archive, "manifest.json", 0o644, &serde_json::to_vec(&docker).context("write Docker's")?)?;
        for blob in [&manifest, &config, &layer] {
            append_file(&mut archive, &place(blob), 0o644, blob)?;
        }
        archive.into_inner().context("finish the archive")
    }

    /// The files as a tar archive.
    fn layer(&self) -> anyhow::Result<Vec<u8>> {
        let mut layer = Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            match entry {
                Entry::Folder => append(&mut layer, &format!("{path}/"), EntryType::Directory, 0o755, &[])?,
                Entry::File(permissions, contents) => append_file(&mut layer, path, *permissions, contents)?,
                Entry::Symlink(target) => {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    layer.append_link(&mut header, path, target).with_context(|| format!("add {path}"))?;
                }
            }
        }
        layer.into_inner().context("finish the layer")
    }

    fn add(&mut self, path: &str, entry: Entry) -> anyhow::Result<()> {
        let path = path.trim_matches('/');
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        if path.is_empty() || !Path::new(path).components().all(plain) {
            bail!("{path:?} is no path in an image");
        }
        for (end, _) in path.match_indices('/') {
            if !matches!(self.entries.entry(path[..end].to_owned()).or_insert(Entry::Folder), Entry::Folder) {
                bail!("{path} would lie below something that is no folder");
            }
        }
        self.entries.insert(path.to_owned(), entry);
        Ok(())
    }
}

/// Writes `image` as an archive to `file`.
pub(crate) fn write(image: &Image, file: &Path) -> anyhow::Result<()> {
    let archive = image.archive().with_context(|| format!("make the image {}", image.name))?;
    // Renamed into place: who imports it meanwhile finds one that is whole.
    let new = file.with_extension("new");
    fs::write(&new, archive).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, file).with_context(|| format!("rename {} to {}", new.display(), file.display()))
}

/// The image of pod sandboxes: a program that waits.
pub(crate) fn pause(busybox: &Path) -> anyhow::Result<Image> {
    let mut image = Image::new("localhost/pause:1", &["/bin/sleep", "infinity"]);
    image.program("/bin/busybox", busybox)?;
    image.symlink("/bin/sleep", "busybox")?;
    Ok(image)
}

/// An image with all of busybox's programs, for whatever pods have to do.
pub(crate) fn tools(busybox: &Path) -> anyhow::Result<Image> {
    let mut image = Image::new("localhost/tools:1", &["/bin/sh"]);
    image.environment.push("PATH=/bin".to_owned());
    image.program("/bin/busybox", busybox)?;
    let names = crate::process::output(Command::new(busybox).arg("--list"))?;
    for name in names.lines().filter(|name| *name != "busybox") {
        image.symlink(&format!("/bin/{name}"), "busybox")?;
    }
    for folder in ["/dev", "/etc", "/proc", "/sys", "/tmp", "/www"] {
        image.folder(folder)?;
    }
    image.file("/etc/passwd", 0o644, "root:x:0:0:root:/:/bin/sh\n")?;
    Ok(image)
}

/// Busybox as Debian's `busybox-static` has it. A machine may have the dynamic one instead: they can't both be installed.
pub(crate) fn busybox() -> anyhow::Result<PathBuf> {
    crate::process::find("busybox").context("busybox is not in PATH (Debian: busybox-static)")
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// This machine's architecture, as Go names it.
fn architecture() -> &'static str {
    match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(blob)))
}

/// Where a blob lies in an archive.
fn place(blob: &[u8]) -> String {
    format!("blobs/sha256/{}", hex(&Sha256::digest(blob)))
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

fn append_file<W: Write>(
    archive: &mut Builder<W>,
    path: &str,
    permissions: u32,
    contents: &[u8],
) -> anyhow::Result<()> {
    append(archive, path, EntryType::Regular, permissions, contents)
}

fn append<W: Write>(
    archive: &mut Builder<W>,
    path: &str,
    kind: EntryType,
    permissions: u32,
    contents: &[u8],
) -> anyhow::Result<()> {
    let mut header = header(kind, permissions, contents.len() as u64);
    archive.append_data(&mut header, path, contents).with_context(|| format!("add {path}"))
}

/// Root's, of no time.
fn header(kind: EntryType, permissions: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(permissions);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Whether a 64-bit little-endian ELF file asks for no interpreter, which is what loads shared libraries (elf(5): program
/// headers of type PT_INTERP).
fn is_static(elf: &[u8]) -> anyhow::Result<bool> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize| -> anyhow::Result<u64> {
        let bytes = elf.get(at..at + size).context("it ends early")?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        bail!("it is no 64-bit little-endian ELF program");
    }
    let start = usize::try_from(number(0x20, 8)?).context("e_phoff")?;
    let (size, count) = (number(0x36, 2)?, number(0x38, 2)?);
    for index in 0..count {
        let at = start + usize::try_from(index * size).context("a program header's place")?;
        if number(at, 4)? == PT_INTERP {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn every_blob_lies_under_its_digest_and_is_described_by_it() {
        let files = unpack(&image().archive().unwrap());
        for (path, contents) in files.iter().filter(|(path, _)| path.starts_with("blobs/")) {
            assert_eq!(*path, place(contents));
        }
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "localhost/test:7");
        let manifest: Value = serde_json::from_slice(blob(&files, &index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(blob(&files, &manifest["config"])).unwrap();
        let layer = blob(&files, &manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(layer));
        assert_eq!(config["config"]["Entrypoint"], json!(["/bin/it"]));
        let names: Vec<String> = unpack(layer).into_keys().collect();
        assert_eq!(names, ["bin/", "bin/alias", "bin/it", "empty/"]);
    }

    #[test]
    fn docker_finds_the_same_layer_and_configuration() {
        let files = unpack(&image().archive().unwrap());
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let manifest: Value = serde_json::from_slice(blob(&files, &index["manifests"][0])).unwrap();
        let docker: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert_eq!(docker[0]["RepoTags"], json!(["localhost/test:7"]));
        for (docker, oci) in
            [(&docker[0]["Config"], &manifest["config"]), (&docker[0]["Layers"][0], &manifest["layers"][0])]
        {
            assert_eq!(files[docker.as_str().unwrap()], blob(&files, oci));
        }
    }

    #[test]
    fn the_same_files_in_another_order_are_the_same_bytes() {
        let mut other = Image::new("localhost/test:7", &["/bin/it"]);
        other.folder("/empty").unwrap();
        other.symlink("bin/alias", "it").unwrap();
        other.file("bin/it", 0o755, "contents").unwrap();
        assert_eq!(image().archive().unwrap(), other.archive().unwrap());
    }

    #[test]
    fn another_file_or_mode_is_another_image() {
        let mut other = image();
        other.file("/bin/it", 0o700, "contents").unwrap();
        assert_ne!(image().archive().unwrap(), other.archive().unwrap());
    }

    #[test]
    fn names_that_leave_the_image_are_refused() {
        let mut image = image();
        for path in ["", "/", "../etc", "a/../../b", "./a"] {
            assert!(image.file(path, 0o644, "").is_err(), "{path:?}");
        }
        assert!(image.file("/bin/it/below", 0o644, "").is_err(), "below a file");
    }

    #[test]
    fn long_names_are_kept() {
        let mut image = Image::new("localhost/test:7", &["/x"]);
        let path = format!("{}/file", ["a-rather-long-folder-name"; 9].join("/"));
        image.file(&path, 0o644, "x").unwrap();
        assert!(unpack(&image.layer().unwrap()).contains_key(&path));
    }

    #[test]
    fn a_program_that_wants_shared_libraries_is_refused() {
        // This test program is linked dynamically, or nothing on this machine is.
        let own = fs::read(env::current_exe().unwrap()).unwrap();
        let mut fixed = own.clone();
        assert_eq!(is_static(&own).ok(), Some(!cfg!(target_env = "gnu")));
        fixed.truncate(100);
        assert!(is_static(&fixed).is_err());
        assert!(is_static(b"#!/bin/sh\n").is_err());
    }

    fn image() -> Image {
        let mut image = Image::new("localhost/test:7", &["/bin/it"]);
        image.file("/bin/it", 0o755, "contents").unwrap();
        image.symlink("/bin/alias", "it").unwrap();
        image.folder("/empty/").unwrap();
        image
    }

    fn unpack(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut contents = Vec::new();
            entry.read_to_end(&mut contents).unwrap();
            (entry.path().unwrap().to_str().unwrap().to_owned(), contents)
        });
        entries.collect()
    }

    fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let blob = &files[&format!("blobs/sha256/{digest}")];
        assert_eq!(descriptor["size"], blob.len());
        blob
    }
}
