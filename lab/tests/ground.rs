//! Namespaces, links, cgroups, packet filters and their removal, for real: needs root.

use anyhow::Result;
use lab::{
    bpffs, cgroup,
    cgroup::Cgroup,
    cleanup,
    netns::{Netns, need_root},
    nft,
    process::Process,
    threads::ThreadCgroup,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

#[test]
fn two_routed_namespaces_reach_each_other_over_both_families() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (left, router, right) = (Netns::anonymous()?, Netns::anonymous()?, Netns::anonymous()?);
    router.forward()?;
    router.bridge("br0")?;
    router.address("br0", "10.9.1.1/24".parse()?)?;
    router.address("br0", "fd09:1::1/64".parse()?)?;
    left.veth("eth0", &router, "left")?;
    router.bridge_port("left", "br0")?;
    left.address("eth0", "10.9.1.2/24".parse()?)?;
    left.address("eth0", "fd09:1::2/64".parse()?)?;
    left.route_via("0.0.0.0/0".parse()?, "10.9.1.1".parse()?)?;
    left.route_via("::/0".parse()?, "fd09:1::1".parse()?)?;
    right.veth("eth0", &router, "right")?;
    for (host, gateway) in [("10.9.2.2/32", "10.9.2.1/32"), ("fd09:2::2/128", "fd09:2::1/128")] {
        let (host, gateway) = (host.parse()?, gateway.parse()?);
        right.address("eth0", host)?;
        right.route_over(gateway, "eth0")?;
        router.address("right", gateway)?;
        router.route_over(host, "right")?;
        let all = if gateway.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        right.route_via(all.parse()?, gateway.addr())?;
    }

    for address in ["10.9.2.2:80", "[fd09:2::2]:80"] {
        let address: SocketAddr = address.parse()?;
        let listener = right.run(|| TcpListener::bind(address))??;
        let mut client = left.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(2)))??;
        let (mut served, from) = listener.accept()?;
        client.write_all(b"hello")?;
        drop(client);
        let mut heard = String::new();
        served.read_to_string(&mut heard)?;
        assert_eq!((heard.as_str(), from.ip().is_ipv4()), ("hello", address.is_ipv4()));
    }
    Ok(())
}

#[test]
fn a_filter_holds_in_its_namespace_until_it_is_removed() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (filtered, free) = (Netns::anonymous()?, Netns::anonymous()?);
    let connect = |netns: &Netns| {
        netns.run(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            TcpStream::connect_timeout(&listener.local_addr().unwrap(), Duration::from_millis(200)).map(drop)
        })
    };
    let rules = "table inet wall { chain in { type filter hook input priority 0; tcp flags syn drop; }; }";
    nft::apply(&filtered, rules)?;
    assert_eq!(connect(&filtered)?.unwrap_err().kind(), ErrorKind::TimedOut);
    connect(&free)??;
    nft::remove_table(&filtered, "inet wall")?;
    connect(&filtered)??;
    let error = nft::apply(&filtered, "no such words").unwrap_err();
    assert!(error.to_string().contains("syntax error"), "{error}");
    Ok(())
}

#[test]
fn a_program_is_in_its_cgroup_and_namespace_from_its_first_instruction() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let netns = Netns::anonymous()?;
    let pod = Cgroup::new("first/kubepods/burstable/podx")?;
    let mut command = pod.command("cat");
    command.args(["/proc/self/cgroup", "/proc/self/net/dev"]).stdout(Stdio::piped());
    let output = netns.spawn(&mut command)?.wait_with_output()?;
    let output = String::from_utf8(output.stdout)?;
    let expected = format!("0::/{}/first/kubepods/burstable/podx\n", cleanup::prefix());
    assert!(output.contains(&expected), "{output}");
    // Two heading lines, then `lo` alone.
    assert_eq!(output.lines().filter(|line| line.contains(':') && !line.contains(":/")).count(), 1, "{output}");
    Ok(())
}

#[test]
fn removing_a_cgroup_ends_what_runs_in_it_and_keeps_others() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let above = Cgroup::new("second")?;
    let below = above.child("a/b")?;
    let inside = below.child("c")?;
    let mut sleeper = inside.command("sleep").arg("100").spawn()?;
    while inside.processes()?.is_empty() {}
    let path = above.path().to_owned();
    drop(below);
    assert!(!sleeper.wait()?.success());
    assert!(above.id()? > 0, "it has an owner of its own");
    assert!(!path.join("a").exists(), "it has none");
    drop(above);
    assert!(!path.exists());
    Ok(())
}

#[test]
fn threads_of_one_process_are_in_cgroups_of_their_own() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (left, right) = (ThreadCgroup::new("left")?, ThreadCgroup::new("right")?);
    let below = right.child("below")?;
    let own_cgroup = |cgroup: &ThreadCgroup| -> Result<String> {
        cgroup.enter()?;
        // A thread is where the one that started it is.
        let read = || fs::read_to_string("/proc/thread-self/cgroup");
        let own = thread::scope(|scope| scope.spawn(read).join()).unwrap()?;
        Ok(own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned())
    };
    thread::scope(|scope| {
        for cgroup in [&left, &below] {
            let own = scope.spawn(move || own_cgroup(cgroup)).join().unwrap().unwrap();
            assert!(cgroup.path().ends_with(own.trim_start_matches('/')), "{own}");
        }
    });
    let path = left.path().to_owned();
    drop((left, below, right));
    assert!(!path.exists());
    assert!(!fs::read_to_string("/proc/self/cgroup")?.contains("threads"), "the process is back");
    Ok(())
}

#[test]
fn what_is_started_while_threads_have_cgroups_outlives_these() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    thread::scope(|scope| {
        let starting = scope.spawn(|| -> Result<()> {
            for _ in 0..300 {
                let status = Command::new("sleep").arg("0.005").status()?;
                assert!(status.success(), "{status}");
            }
            Ok(())
        });
        while !starting.is_finished() {
            drop(ThreadCgroup::new("short")?);
        }
        starting.join().expect("every command ends by itself")
    })
}

#[test]
fn a_run_that_was_killed_leaves_nothing_once_somebody_looks() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut other = other_run()?;
    assert!(!cleanup::remove_dead()?.contains(&other.id()));
    assert_eq!(left_by(other.id()), [true; 4], "its owner lives");
    other.kill()?;
    other.wait()?;
    cleanup::remove_dead()?;
    assert_eq!(left_by(other.id()), [false; 4]);
    Ok(())
}

#[test]
fn a_run_that_is_told_to_end_leaves_nothing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let mut other = other_run()?;
    kill(Pid::from_raw(i32::try_from(other.id())?), Signal::SIGINT)?;
    let status = other.wait()?;
    assert_eq!(status.signal(), Some(Signal::SIGINT as i32), "it says what ended it");
    assert_eq!(left_by(other.id()), [false; 4]);
    Ok(())
}

#[test]
#[ignore = "run by another test"]
fn make_one_of_each_and_wait() -> Result<()> {
    let netns = Netns::named("one")?;
    let cgroup = Cgroup::new("one")?;
    fs::create_dir_all(bpffs::folder()?)?;
    cleanup::folder()?;
    let mut command = cgroup.command("sleep");
    command.arg("100");
    let _sleeper = Process::start(&netns, command)?;
    println!("\nready");
    thread::sleep(Duration::from_secs(100));
    Ok(())
}

/// This test program once more, told to make one of each and to wait.
fn other_run() -> Result<Child> {
    let mut other = Command::new(std::env::current_exe()?)
        .args(["--exact", "--ignored", "make_one_of_each_and_wait", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = other.stdout.take().unwrap();
    assert!(BufReader::new(stdout).lines().any(|line| line.unwrap() == "ready"), "it ended too early");
    assert_eq!(left_by(other.id()), [true; 4]);
    Ok(other)
}

/// What there is of the process `owner`, in the four places where something can be.
fn left_by(owner: u32) -> [bool; 4] {
    let name = format!("tombolo-lab-{owner}");
    let named = Path::new("/run/netns").join(format!("{name}-one"));
    let cgroups = cgroup::mount_point().unwrap().join(&name);
    [named, cgroups, Path::new("/sys/fs/bpf").join(&name), Path::new("/run").join(&name)].map(|path| path.exists())
}

fn skipped() -> bool {
    let skip = need_root().is_err();
    if skip {
        eprintln!("skipped: needs root");
    }
    skip
}
