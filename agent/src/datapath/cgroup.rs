//! Which cgroup to attach to, and what cgroups are called.

use super::bpf::{CGROUP2_MAGIC, file_system_magic};
use anyhow::{Context, bail, ensure};
use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process,
};

/// `CGROUP_SUPER_MAGIC`, linux/magic.h: version 1.
const CGROUP1_MAGIC: i64 = 0x27_e0eb;
/// How far below a cgroup the kubelet's folders for pods are looked for: `docker/ID/kubelet/kubepods` is one of the deepest.
const DEPTH: usize = 4;

/// The id by which the kernel names this cgroup: its folder's inode number.
pub fn id(cgroup: &Path) -> anyhow::Result<u64> {
    let meta = match fs::metadata(cgroup) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => bail!("there is no cgroup {}", cgroup.display()),
        meta => meta.with_context(|| format!("look at cgroup {}", cgroup.display()))?,
    };
    let magic = file_system_magic(cgroup).with_context(|| format!("look at cgroup {}", cgroup.display()))?;
    ensure!(
        magic != CGROUP1_MAGIC,
        "{} is a cgroup of version 1, where programs can't be attached to connect: name one of version 2 (--cgroup), or boot \
         with systemd.unified_cgroup_hierarchy=1; until then connections are left to kube-proxy",
        cgroup.display()
    );
    ensure!(
        magic == CGROUP2_MAGIC,
        "{} is not in a cgroup2 hierarchy: name a cgroup of version 2 (--cgroup); until then connections are left to kube-proxy",
        cgroup.display()
    );
    Ok(meta.ino())
}

/// The cgroup that a person named, by its full path.
pub fn named(cgroup: &Path) -> anyhow::Result<PathBuf> {
    id(cgroup)?;
    fs::canonicalize(cgroup).with_context(|| format!("find the full path of cgroup {}", cgroup.display()))
}

/// How many cgroups lie above this one, down from what is mounted as the hierarchy's root.
pub fn level_below_mount(cgroup: &Path) -> anyhow::Result<u32> {
    let mount = mount()?;
    let below = cgroup
        .strip_prefix(&mount)
        .with_context(|| format!("{} is not below the cgroup2 hierarchy at {}", cgroup.display(), mount.display()))?;
    Ok(u32::try_from(below.components().count())?)
}

/// Where to attach: the folder that holds all pods' cgroups if this process runs in a pod, else the hierarchy's root.
///
/// A child cgroup's programs run before its parents', so at the pods' folder we come before a translator that a CNI
/// attached at the root.
pub fn attach_point() -> anyhow::Result<PathBuf> {
    let mount = mount()?;
    let own = own(&mount)?;
    if let Some(pods) = pods_folder(&mount, &own) {
        return Ok(pods);
    }
    // Attached here, programs would act on this container and on nobody else.
    ensure!(
        !is_namespaced(&mount),
        "only this container's own part of the cgroup hierarchy is to be seen, at {}: mount the node's /sys/fs/cgroup into it \
         (in Kubernetes a hostPath volume)",
        mount.display()
    );
    Ok(mount)
}

/// Whether this process' sockets belong to `cgroup` or one below it.
pub fn covers_us(cgroup: &Path) -> anyhow::Result<bool> {
    Ok(own(&mount()?)?.starts_with(cgroup))
}

/// The folders below `cgroup`, and itself, in which the kubelet may have made pods' cgroups.
pub fn pods_folders(cgroup: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = vec![cgroup.to_owned()];
    let mut left = vec![(cgroup.to_owned(), 0)];
    while let Some((dir, depth)) = left.pop() {
        for below in folders(&dir)? {
            if name_of(&below).contains("kubepods") {
                found.push(below);
            } else if depth + 1 < DEPTH {
                left.push((below, depth + 1));
            }
        }
    }
    Ok(found)
}

/// The pods' cgroups in these folders, by UID.
///
/// The kubelet names one by its cgroup driver, `podUID` or `…-podU_I_D.slice`, in a folder of its QoS class or directly.
pub fn pods(pods_folders: &[PathBuf]) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for folder in pods_folders {
        for dir in folders(folder)? {
            let is_class = ["burstable", "besteffort"].iter().any(|class| name_of(&dir).contains(class));
            let inside = if is_class { folders(&dir)? } else { Vec::new() };
            for pod in std::iter::once(dir).chain(inside) {
                if let Some(uid) = pod_uid(name_of(&pod)) {
                    found.insert(uid, pod);
                }
            }
        }
    }
    Ok(found)
}

/// The UID of the pod whose cgroup has this name, if a pod's can.
fn pod_uid(name: &str) -> Option<String> {
    let name = name.rfind("-pod").map_or(name, |at| &name[at + 1..]);
    let uid = name.strip_prefix("pod")?;
    Some(uid.strip_suffix(".slice").unwrap_or(uid).replace('_', "-")).filter(|uid| !uid.is_empty())
}

/// The cgroup with this id, if it is to be found.
pub fn find(id: u64) -> anyhow::Result<Option<PathBuf>> {
    let mut left = vec![mount()?];
    while let Some(dir) = left.pop() {
        if fs::metadata(&dir).is_ok_and(|meta| meta.ino() == id) {
            return Ok(Some(dir));
        }
        left.extend(folders(&dir)?);
    }
    Ok(None)
}

fn name_of(dir: &Path) -> &str {
    dir.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Where the cgroup2 hierarchy is mounted.
pub fn mount() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let Some(mount) = cgroup2_mount(&mounts) else {
        bail!(
            "no cgroup2 hierarchy is mounted: mount one (`mount -t cgroup2 none /sys/fs/cgroup/unified`), or boot with \
             systemd.unified_cgroup_hierarchy=1; until then connections are left to kube-proxy"
        );
    };
    Ok(mount)
}

/// The mount of the whole hierarchy, where there are several; a container may see its own part of it as well.
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    let mut best = None;
    for line in mountinfo.lines() {
        let (fields, tail) = line.split_once(" - ")?;
        if tail.split(' ').next() != Some("cgroup2") {
            continue;
        }
        let mut fields = fields.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // `/../..` is a folder above our own cgroup namespace's root, `/a/b` one below it: the higher, the more of the
        // hierarchy.
        let above = root.matches("..").count();
        let below = root.split('/').filter(|part| !part.is_empty() && *part != "..").count();
        let height = (above, Reverse(below));
        if best.as_ref().is_none_or(|(highest, _)| height > *highest) {
            best = Some((height, PathBuf::from(unescape(point))));
        }
    }
    best.map(|(_, mount)| mount)
}

/// mountinfo writes blanks and backslashes as octal numbers.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The cgroup of this process. By name, or in a cgroup namespace of its own by looking for its process id.
pub(super) fn own(mount: &Path) -> anyhow::Result<PathBuf> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let name = cgroups.lines().find_map(|line| line.strip_prefix("0::/"));
    let name = name.context("this process is in no cgroup of the cgroup2 hierarchy")?;
    let by_name = mount.join(name);
    if holds_us(&by_name) {
        return Ok(by_name);
    }
    // In a cgroup namespace of our own we are at its root by name, wherever that lies in what is mounted.
    let mut left = vec![mount.to_owned()];
    while let Some(dir) = left.pop() {
        if holds_us(&dir) {
            return Ok(dir);
        }
        left.extend(folders(&dir)?);
    }
    // The root's list of processes names none that a container's pid namespace doesn't show.
    if name.is_empty() && !is_namespaced(mount) {
        return Ok(by_name);
    }
    bail!("can't find this process below {}: name the cgroup to attach to with --cgroup", mount.display())
}

/// Whether the hierarchy at `mount` reaches above this process' own cgroup namespace: only a root has no `cgroup.type`.
pub(super) fn is_namespaced(mount: &Path) -> bool {
    mount.join("cgroup.type").exists()
}

fn holds_us(cgroup: &Path) -> bool {
    let pid = process::id().to_string();
    fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|pids| pids.lines().any(|line| line == pid))
}

fn folders(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        // A cgroup may go at any time.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("list {}", dir.display()))?,
    };
    let mut folders = Vec::new();
    for entry in entries {
        let Ok(entry) = entry else { continue };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

/// The topmost folder on the way to `own` that the kubelet made for pods.
fn pods_folder(mount: &Path, own: &Path) -> Option<PathBuf> {
    let mut folder = mount.to_owned();
    for part in own.strip_prefix(mount).ok()?.components() {
        folder.push(part);
        if part.as_os_str().to_str().is_some_and(|name| name.contains("kubepods")) {
            return Some(folder);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_attaches_where_the_kubelet_keeps_all_pods() {
        let mount = Path::new("/sys/fs/cgroup");
        for (own, folder) in [
            ("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-1.scope", "kubepods.slice"),
            ("kubepods/besteffort/pod1-2/abc", "kubepods"),
            ("kubelet/kubepods/pod1-2/abc", "kubelet/kubepods"),
            (
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice/x",
                "kubelet.slice/kubelet-kubepods.slice",
            ),
        ] {
            assert_eq!(pods_folder(mount, &mount.join(own)), Some(mount.join(folder)), "{own}");
        }
    }

    #[test]
    fn outside_of_pods_there_is_no_pods_folder() {
        assert_eq!(pods_folder(Path::new("/cg"), Path::new("/cg/system.slice/tombolo.service")), None);
    }

    #[test]
    fn the_mount_that_shows_most_of_the_hierarchy_is_taken() {
        let mountinfo = "\
25 1 0:23 / /proc rw - proc proc rw
30 1 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw
31 1 0:26 /../../.. /host/my\\040cgroup rw - cgroup2 cgroup rw";
        assert_eq!(cgroup2_mount(mountinfo), Some(PathBuf::from("/host/my cgroup")));
    }

    #[test]
    fn a_container_s_own_cgroup_is_not_taken_for_the_node_s() {
        let mountinfo = "\
30 1 0:26 /kubepods/besteffort/pod1/c1 /sys/fs/cgroup/unified ro - cgroup2 cgroup rw
31 1 0:26 / /host/cgroup/unified ro - cgroup2 cgroup rw";
        assert_eq!(cgroup2_mount(mountinfo), Some(PathBuf::from("/host/cgroup/unified")));
    }

    #[test]
    fn a_node_with_cgroup_v1_only_has_no_mount() {
        assert_eq!(cgroup2_mount("30 1 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"), None);
    }

    #[test]
    fn a_pods_cgroup_is_found_under_either_driver_and_any_class() {
        let pods = tempfile::tempdir().unwrap();
        let folders =
            ["podother", "burstable/pod0af1-22", "kubepods-besteffort.slice/kubepods-besteffort-pod9_9.slice"];
        for name in folders {
            fs::create_dir_all(pods.path().join(name)).unwrap();
        }
        fs::create_dir(pods.path().join("system")).unwrap();
        let found = super::pods(&[pods.path().to_owned()]).unwrap();
        let expected = [("0af1-22", folders[1]), ("9-9", folders[2]), ("other", folders[0])];
        assert_eq!(found, expected.map(|(uid, name)| (uid.to_owned(), pods.path().join(name))).into());
    }

    #[test]
    fn pods_are_looked_for_where_the_kubelet_keeps_them_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        let names = ["kubepods.slice", "docker/4e/kubelet/kubepods", "kubelet.slice/kubelet-kubepods.slice"];
        for name in names.iter().chain(&["system.slice/a/b/c/d/kubepods", "user.slice"]) {
            fs::create_dir_all(root.path().join(name)).unwrap();
        }
        let mut found = pods_folders(root.path()).unwrap();
        found.sort();
        let mut expected: Vec<_> = names.iter().map(|name| root.path().join(name)).collect();
        expected.push(root.path().to_owned());
        expected.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_not_a_cgroup_of_version_2_is_said_to_be_none() {
        let error = |path: &str| named(Path::new(path)).unwrap_err().to_string();
        assert_eq!(error("/no/such/cgroup"), "there is no cgroup /no/such/cgroup");
        assert!(error("/proc").contains("is not in a cgroup2 hierarchy"));
    }
}
