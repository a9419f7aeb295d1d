//! What the agent needs, and what it says if it lacks it.

use crate::{
    agent_foreign::{CONNECT4, programs_on},
    agent_site::{Prepare, Said, Site, adopted_all, program, service},
    agent_unprivileged::{bpf_and_net_admin, bpf_only, net_admin_only, no_membarrier, nobody, nothing},
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::{fs, path::PathBuf, process::Command};

const VIP: &str = "10.96.0.10:80";
const BACKEND: &str = "127.0.0.5:8080";

fn site() -> Option<Site> {
    let mut site = Site::new()?;
    site.serve(BACKEND);
    site.write("web.yaml", &service("web-federated", VIP, &[BACKEND]));
    Some(site)
}

/// Runs `tombolo` with fewer rights.
fn tombolo(site: &Site, prepare: Prepare, arguments: &[&str]) -> Said {
    let mut command = Command::new(program("tombolo"));
    command.args(arguments).arg("--pins").arg(&site.pins);
    if arguments[0] != "unload" {
        command.arg("--socket").arg(&site.socket);
    }
    prepare(&mut command);
    Said::by(&mut command)
}

#[test]
fn two_capabilities_are_all_it_takes() {
    let Some(site) = site() else { return };
    for outside in [false, true] {
        let start = || {
            let agent = site.agent().prepared(bpf_and_net_admin);
            let mut agent = if outside { agent.outside() } else { agent }.start();
            agent.wait_until_ready();
            agent
        };
        let agent = start();
        let status = fs::read_to_string(format!("/proc/{}/status", agent.id())).unwrap();
        let set = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
        assert_eq!(u64::from_str_radix(set, 16).unwrap(), 1 << 39 | 1 << 12, "{set}");
        assert_eq!(site.client().tcp(VIP).as_deref(), Ok(BACKEND));
        assert!(tombolo(&site, bpf_and_net_admin, &["status"]).status.success());
        agent.kill();

        let said = tombolo(&site, bpf_and_net_admin, &["services", "-o", "json"]);
        assert!(said.out.contains("demo/web-federated") && said.out.contains(BACKEND), "{said:?}");
        let said = tombolo(&site, bpf_and_net_admin, &["status"]);
        assert!(said.out.contains("connect4") && said.out.contains("no agent answers"), "{said:?}");
        let agent = start();
        assert!(agent.log().contains(&adopted_all()), "{}", agent.log());
        agent.kill();
        let said = tombolo(&site, bpf_and_net_admin, &["unload"]);
        assert!(said.status.success() && !site.pins.exists(), "{said:?}");
    }
}

#[test]
fn a_missing_capability_is_named() {
    let Some(site) = site() else { return };
    let cases: [(Prepare, &[&str], &[&str]); 3] = [
        (bpf_only, &["missing CAP_NET_ADMIN:"], &["CAP_BPF"]),
        (net_admin_only, &["missing CAP_BPF:"], &["CAP_NET_ADMIN"]),
        (nothing, &["missing CAP_BPF and CAP_NET_ADMIN:", "capabilities.add: [BPF, NET_ADMIN]"], &[]),
    ];
    for (prepare, named, not_named) in cases {
        let said = site.agent().prepared(prepare).fail();
        for part in named {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
        for part in not_named {
            assert!(!said.contains(part), "{part} is in: {said}");
        }
        let said = tombolo(&site, prepare, &["unload"]);
        assert!(!said.status.success() && said.err.contains("missing CAP_"), "{said:?}");
    }
    assert!(!site.pins.exists() && !site.socket.exists());
}

#[test]
fn who_is_not_root_is_told_so() {
    let Some(site) = site() else { return };
    let said = site.agent().outside().prepared(nobody).fail();
    assert!(said.contains("missing CAP_BPF and CAP_NET_ADMIN: run as root"), "{said}");
    let agent = site.ready_agent();
    let said = tombolo(&site, nobody, &["status"]);
    assert!(!said.status.success() && said.err.contains("which takes root"), "{said:?}");
    agent.kill();
    fs::remove_file(&site.socket).unwrap();
    let said = tombolo(&site, nobody, &["services"]);
    assert!(!said.status.success() && said.err.contains("takes root"), "{said:?}");
}

#[test]
fn pins_outside_of_bpffs_are_refused() {
    let Some(site) = site() else { return };
    let pins = site.folder().join("pins");
    let said = site.agent().with("--pins", &pins).fail();
    for part in ["is not on a BPF file system", "mount -t bpf bpf /sys/fs/bpf", "--pins"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    assert!(!pins.exists());
}

#[test]
fn a_cgroup_that_is_none_is_refused() {
    let Some(site) = site() else { return };
    let said = site.agent().with("--cgroup", site.cgroup.path().join("none")).fail();
    assert!(said.contains("there is no cgroup ") && said.contains("/none"), "{said}");
    let said = site.agent().with("--cgroup", site.folder()).fail();
    assert!(said.contains("is not in a cgroup2 hierarchy") && said.contains("--cgroup"), "{said}");
    assert!(!site.pins.exists());
}

#[test]
fn a_cgroup_of_version_1_is_refused() {
    let Some(site) = site() else { return };
    let Some(cgroup) = VersionOne::mount(site.folder().join("v1")) else { return };
    let said = site.agent().with("--cgroup", &cgroup.0).fail();
    for part in ["is a cgroup of version 1", "left to kube-proxy", "systemd.unified_cgroup_hierarchy=1"] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    assert!(!site.pins.exists());
}

#[test]
fn nothing_is_written_but_pins_and_the_socket() {
    let Some(site) = site() else { return };
    let run = site.folder().join("run");
    fs::create_dir(&run).unwrap();
    // Every mount becomes read-only, except for bpffs and the socket's folder.
    let script = format!(
        r#"set -e
        mount --make-rprivate /
        mount --bind {run} {run}
        for mount in $(cut -d' ' -f2 /proc/self/mounts); do
            case $mount in
                /sys/fs/bpf|{run}|/proc|/proc/*|/dev|/dev/*) ;;
                *) mount -o remount,bind,ro "$mount" ;;
            esac
        done
        ! touch {folder}/x {manifests}/x /x 2>/dev/null
        touch {run}/x
        exec "$@""#,
        run = run.display(),
        folder = site.folder().display(),
        manifests = site.manifests.display(),
    );
    let mut agent = site
        .agent()
        .with("--socket", run.join("agent.sock"))
        .wrapped(&["unshare", "--mount", "sh", "-c", &script, "read-only"])
        .start();
    agent.wait_until_ready();
    assert_eq!(site.client().tcp(VIP).as_deref(), Ok(BACKEND));
    site.write("web.yaml", &service("web-federated", VIP, &["127.0.0.5:8080", "127.0.0.5:8081"]));
    agent.stop();
}

#[test]
fn a_kernel_without_membarrier_is_lived_with() {
    let Some(mut site) = site() else { return };
    site.serve("127.0.0.6:8080");
    let mut agent = site.agent().prepared(no_membarrier).start();
    agent.wait_until_ready();
    let mut client = site.client();
    for backend in ["127.0.0.6:8080", BACKEND, "127.0.0.6:8080"] {
        site.write("web.yaml", &service("web-federated", VIP, &[backend]));
        let there =
            crate::clock::until(crate::clock::SOON, || (client.tcp(VIP).as_deref() == Ok(backend)).then_some(()));
        assert!(there.is_some(), "{backend}: {}", agent.log());
    }
    let log = agent.log();
    assert_eq!(log.matches("no membarrier, waiting for programs by exchanging a map").count(), 1, "{log}");
    assert!(site.json("status").1);
}

#[test]
fn an_agent_that_can_not_listen_attaches_nothing() {
    let Some(site) = site() else { return };
    let file = site.folder().join("file");
    fs::write(&file, "mine").unwrap();
    let said = site.agent().with("--socket", &file).fail();
    assert!(said.contains("is there and no socket"), "{said}");
    let said = site.agent().with("--socket", file.join("agent.sock")).fail();
    assert!(said.contains(&format!("create {}", file.display())), "{said}");
    assert!(!site.pins.exists());
    assert_eq!(programs_on(site.cgroup.path(), CONNECT4).0, Vec::<u32>::new());
}

/// A hierarchy of version 1 without controllers, for a while.
struct VersionOne(PathBuf);

impl VersionOne {
    fn mount(at: PathBuf) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let name = format!("none,name=tombolo-test-{}", std::process::id());
        match mount(Some("none"), &at, Some("cgroup"), MsFlags::empty(), Some(name.as_str())) {
            Ok(()) => Some(Self(at)),
            Err(error) => {
                println!("skipped: no cgroup of version 1 can be mounted: {error}");
                None
            }
        }
    }
}

impl Drop for VersionOne {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}
