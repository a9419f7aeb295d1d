//! Guest kernels: Debian's packages, unpacked into the cache folder without installing them.

use super::{bzimage, cpio::Archive, modules};
use crate::{
    packages,
    process::{filter, output, root_prefix, run},
    toolchain::cache,
};
use anyhow::{Context, bail};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A kernel that is ready to be started.
pub(crate) struct Kernel {
    /// What `uname -r` says in the guest.
    pub(crate) release: String,
    /// The kernel, uncompressed.
    pub(crate) vmlinux: PathBuf,
    /// An initramfs archive with its modules.
    pub(crate) modules: PathBuf,
}

/// The kernel `spec`: a version such as `6.1`, of which Debian's newest package is taken, or a package's file. It is
/// fetched and unpacked if the cache folder doesn't have it. Needs [`Need::Guests`](crate::setup::Need::Guests).
pub(crate) fn kernel(spec: &str) -> anyhow::Result<Kernel> {
    let name = Path::new(spec).file_name().and_then(|name| name.to_str()).with_context(|| format!("kernel {spec}"))?;
    let folder = folder()?.join(name.strip_suffix(".deb").unwrap_or(name));
    if !has_modules(&folder, modules::WANTED) {
        let fetched = if spec.ends_with(".deb") { None } else { Some(download(spec)?) };
        let package = fetched.clone().unwrap_or_else(|| PathBuf::from(spec));
        println!("unpacking {}", package.display());
        let new = folder.with_extension(format!("new-{}", std::process::id()));
        let unpacked = unpack(&package, &new).with_context(|| format!("unpack {}", package.display()));
        // Moved into place when it is whole, so that a run that was stopped leaves nothing half done behind.
        let moved = unpacked.and_then(|()| replace(&folder, &new).context("keep the unpacked kernel"));
        if moved.is_err() {
            fs::remove_dir_all(&new).with_context(|| format!("remove {}", new.display()))?;
        }
        moved?;
        if let Some(package) = fetched {
            fs::remove_file(&package).with_context(|| format!("remove {}", package.display()))?;
        }
    }
    let release = fs::read_to_string(folder.join("release")).with_context(|| format!("read {}", folder.display()))?;
    Ok(Kernel {
        release: release.trim().to_owned(),
        vmlinux: folder.join("vmlinux"),
        modules: folder.join("modules.cpio"),
    })
}

/// Whether `folder` holds a kernel with all these modules, or without those that it lacks: one that was unpacked when fewer
/// were wanted doesn't.
fn has_modules(folder: &Path, wanted: &[&str]) -> bool {
    let unpacked_with = fs::read_to_string(folder.join("wanted")).unwrap_or_default();
    wanted.iter().all(|name| unpacked_with.lines().any(|line| line == *name))
}

/// Puts the folder `new` in the place of `folder`.
fn replace(folder: &Path, new: &Path) -> std::io::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::rename(new, folder)
}

/// Where kernels are kept.
pub(crate) fn folder() -> anyhow::Result<PathBuf> {
    Ok(cache()?.join("kernels"))
}

/// Fetches Debian's newest package of this kernel version, if it isn't there yet.
fn download(version: &str) -> anyhow::Result<PathBuf> {
    if !version.chars().all(|c| c.is_ascii_digit() || c == '.') {
        bail!("{version} is neither a kernel version such as 6.1 nor a .deb file");
    }
    let package = match newest(version)? {
        Some(package) => package,
        None => {
            if let Some(prefix) = root_prefix()? {
                packages::update(&prefix)?;
            }
            newest(version)?.with_context(|| {
                format!("no package source of this machine has linux-image-{version}.*-cloud-amd64, which is Debian's; give a .deb file instead")
            })?
        }
    };
    let folder = folder()?.join("packages");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    println!("fetching {package}: 30 MB or so, once");
    let mut fetch = Command::new("apt-get");
    // Root fetches as root: the user that apt would become can't write here.
    fetch.args(["-qq", "-o", "APT::Sandbox::User=root", "download", &package]).current_dir(&folder);
    if run(&mut fetch).is_err() {
        // The lists may be older than the archive, which no longer holds what they name.
        let prefix = root_prefix()?.context("apt's package lists are out of date: run apt-get update as root")?;
        packages::update(&prefix)?;
        run(&mut fetch)?;
    }
    let files = fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = files.map(|file| file.map(|file| file.path())).collect::<Result<_, _>>()?;
    files
        .retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{package}_"))));
    files.pop().with_context(|| format!("apt-get fetched no file of {package}"))
}

/// The newest package of this kernel version that apt knows.
fn newest(version: &str) -> anyhow::Result<Option<String>> {
    let pattern = format!("^linux-image-{}\\.[0-9].*-cloud-amd64$", version.replace('.', "\\."));
    let found = output(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
    Ok(found.lines().filter_map(|line| line.split(' ').next()).max_by_key(|name| numbers(name)).map(str::to_owned))
}

/// The numbers in a name: what versions are compared by.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Makes of a package what a guest needs, in `folder`.
fn unpack(package: &Path, folder: &Path) -> anyhow::Result<()> {
    let tree = folder.join("tree");
    fs::create_dir_all(&tree).with_context(|| format!("create {}", tree.display()))?;
    run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&tree))?;
    let release = fs::read_dir(tree.join("boot"))
        .context("the package has no /boot")?
        .filter_map(|file| file.ok()?.file_name().to_str()?.strip_prefix("vmlinuz-").map(str::to_owned))
        .next()
        .context("the package has no kernel in /boot")?;
    let image = fs::read(tree.join(format!("boot/vmlinuz-{release}"))).context("read the kernel image")?;
    write(&folder.join("vmlinux"), &bzimage::vmlinux(&image)?)?;
    write(&folder.join("modules.cpio"), &module_archive(&tree, folder, &release)?)?;
    write(&folder.join("release"), release.as_bytes())?;
    write(&folder.join("wanted"), modules::WANTED.join("\n").as_bytes())?;
    fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))
}

/// An archive of the modules that guests need, with the tables that `modprobe` reads.
fn module_archive(tree: &Path, folder: &Path, release: &str) -> anyhow::Result<Vec<u8>> {
    let source = ["usr/lib/modules", "lib/modules"]
        .map(|parent| tree.join(parent).join(release))
        .into_iter()
        .find(|source| source.exists())
        .context("the package has no modules")?;
    let mut files = BTreeMap::new();
    list_modules(&source, &mut files)?;
    let modules = modules::closure(modules::WANTED, |name| files.get(name).map(|file| read_module(file)).transpose())?;

    // depmod works on a tree of files.
    let root = folder.join("root");
    let target = root.join("lib/modules").join(release);
    fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
    for (name, module) in &modules {
        write(&target.join(format!("{name}.ko")), module)?;
    }
    fs::copy(source.join("modules.builtin"), target.join("modules.builtin")).context("copy modules.builtin")?;
    run(Command::new("busybox").arg("depmod").arg("-b").arg(&root).arg(release))?;
    let mut archive = Archive::default();
    archive.copy(&target, &format!("/lib/modules/{release}"))?;
    fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    Ok(archive.finish())
}

/// Notes every module below `folder` by its name.
fn list_modules(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            list_modules(&path, files)?;
        } else if let Some(name) = path.file_name().and_then(|name| modules::name_of_file(name.to_str()?)) {
            files.insert(name, path);
        }
    }
    Ok(())
}

fn read_module(file: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => filter(Command::new("xz").arg("-dc"), &bytes),
        Some("zst") => filter(Command::new("zstd").arg("-dc"), &bytes),
        _ => Ok(bytes),
    }
}

fn write(file: &Path, contents: &[u8]) -> anyhow::Result<()> {
    fs::write(file, contents).with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let names =
            ["linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-10-cloud-amd64"];
        assert_eq!(names.into_iter().max_by_key(|name| numbers(name)), Some(names[1]));
    }

    #[test]
    fn a_kernel_that_was_unpacked_with_fewer_modules_is_unpacked_again() {
        let folder = std::env::temp_dir().join(format!("tombolo-image-{}", std::process::id()));
        assert!(!has_modules(&folder, &["veth"]), "there is none");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("wanted"), "veth\nbridge").unwrap();
        let has =
            [&["veth", "bridge"][..], &["bridge"], &["veth", "sch_netem"]].map(|wanted| has_modules(&folder, wanted));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(has, [true, true, false]);
    }
}
