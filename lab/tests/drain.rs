//! The pod server and the load generator, as the programs that they are, over loopback.

use anyhow::{Context, Result};
use lab::report::Report;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStdout, Command, Stdio},
    thread::sleep,
    time::Duration,
};

/// Ends with its test, whatever happens.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

#[test]
fn a_draining_server_fails_nobody_who_still_comes() -> Result<()> {
    let at = free_address()?;
    let mut server = start(&["server", "--cluster", "west", "--pod", "w1", "--listen", &at, "--linger-ms", "3000"])?;
    let mut load = start(&["load", &at, "--rate", "500"])?;
    sleep(Duration::from_millis(400));
    server.signal(Signal::SIGTERM)?;
    sleep(Duration::from_millis(600));
    let report = load.last_report()?;
    assert_eq!((report.failed, report.failures.as_slice()), (0, [].as_slice()));
    assert!(report.by_pod["w1"].answers > 200, "{report:?}");
    assert!(server.child.wait()?.success());
    Ok(())
}

#[test]
fn a_draining_server_closes_a_connection_that_waits_for_nothing() -> Result<()> {
    let at = free_address()?;
    let mut server = start(&["server", "--cluster", "west", "--pod", "w1", "--listen", &at, "--linger-ms", "0"])?;
    let mut idle = TcpStream::connect(&at)?;
    idle.set_read_timeout(Some(Duration::from_secs(5)))?;
    idle.write_all(b"GET / HTTP/1.1\r\nHost: it\r\n\r\n")?;
    let mut heard = [0; 1024];
    let length = idle.read(&mut heard)?;
    let heard = String::from_utf8_lossy(&heard[..length]).to_lowercase();
    assert!(heard.contains("200 ok") && !heard.contains("connection: close"), "{heard}");
    server.signal(Signal::SIGTERM)?;
    assert_eq!(idle.read(&mut [0])?, 0, "closed without an error");
    assert!(server.child.wait()?.success());
    Ok(())
}

#[test]
fn both_kinds_of_datagram_sockets_are_answered() -> Result<()> {
    let at = free_address()?;
    let _server = start(&["server", "--cluster", "east", "--pod", "e1", "--listen", &at])?;
    let mut load = start(&["load", &at, "--udp", "--rate", "500", "--requests", "50"])?;
    assert!(load.child.wait()?.success());
    let report = load.last_report()?;
    assert_eq!((report.by_cluster["east"], report.failed, report.other_peer), (50, 0, 0));
    Ok(())
}

#[test]
fn a_request_that_nobody_takes_is_counted_with_its_reason() -> Result<()> {
    let at = free_address()?;
    let mut load = start(&["load", &at, "--rate", "500", "--requests", "3"])?;
    assert!(load.child.wait()?.success());
    let report = load.last_report()?;
    assert_eq!((report.requests, report.failed), (3, 3));
    assert!(report.failures[0].error.contains("Connection refused"), "{:?}", report.failures);
    Ok(())
}

/// An address of the loopback that nobody listens on.
fn free_address() -> Result<String> {
    let address: SocketAddr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    Ok(address.to_string())
}

/// Starts `lab` and waits for its first line: `ready`, or a report.
fn start(arguments: &[&str]) -> Result<Running> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lab")).args(arguments).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next().context("it said nothing")??;
    Ok(Running { child, lines })
}

impl Running {
    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    fn last_report(&mut self) -> Result<Report> {
        if self.child.try_wait()?.is_none() {
            self.signal(Signal::SIGTERM)?;
        }
        let last = self.lines.by_ref().last().context("it wrote no report")??;
        Ok(serde_json::from_str(&last)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
