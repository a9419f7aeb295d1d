//! `kernels`: the kernel tests on other kernels than the running one. `guest`: any command there, for a closer look.

use crate::{
    build_ebpf,
    guest::{
        End, Guest, Shift, TEST_FOLDER,
        image::{self, Kernel},
    },
    process::run,
    report::Report,
    setup::{self, Need},
    test,
    toolchain::root,
};
use anyhow::{Context, bail, ensure};
use std::{
    env, io,
    num::NonZero,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

/// The oldest kernel that is supported, and the newest that Debian 12 has.
const DEFAULT: [&str; 2] = ["6.1", "6.12"];

/// The programs of ours that the kernel tests start.
const OURS: [&str; 2] = ["tombolo", "lab"];
/// How often a guest is started that the emulator breaks.
pub(crate) const TRIES: u32 = 3;
/// The variable that tells tests how many connects to make.
const EFFORT: &str = "TOMBOLO_TEST_CONNECTS";
/// The tests' processor in virtual time: 4 ns an instruction.
const SHIFT: Shift = 2;
/// The variable that tells tests to trust an emulated processor's clock.
const VIRTUAL_TIME: &str = "TOMBOLO_TEST_CLOCK=virtual";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kernel versions, of which Debian's newest packages are taken, or files of such packages [default: 6.1 6.12]
    kernels: Vec<String>,
    /// Give a guest up after so many seconds
    #[arg(long, default_value_t = 2700)]
    limit: u64,
    /// In real time on two processors, for what only two of them do to each other: takes several times longer, and what
    /// judges times is skipped
    #[arg(long)]
    real_time: bool,
    /// Run only tests whose name contains one of these
    #[arg(last = true)]
    filters: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct GuestArgs {
    /// Kernel version, of which Debian's newest package is taken, or the file of such a package
    #[arg(short, long, default_value = DEFAULT[0])]
    kernel: String,
    /// Virtual time, on one processor: for what waits or measures; sleeping costs nothing
    #[arg(short, long)]
    virtual_time: bool,
    /// In virtual time an instruction takes 2 to the power of so many nanoseconds: 0 for a processor that can bear a load, more
    /// for less work in what waits without sleeping
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=10))]
    shift: Shift,
    /// Put a file or folder into the guest, at PATH or /test/NAME, with the libraries that a program needs
    #[arg(short, long = "file", value_name = "FILE[:PATH]")]
    files: Vec<String>,
    /// Processors
    #[arg(short, long, default_value_t = 2)]
    cpus: u32,
    /// Memory in MiB
    #[arg(short, long, default_value_t = 1024)]
    memory: u32,
    /// Give the guest up after so many seconds; the status is then 124, and 125 if the guest broke down
    #[arg(short = 't', long, default_value_t = 120)]
    limit: u64,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs the kernel tests on each kernel and prints one line for each, then the counts; an error if something failed.
///
/// In virtual time, a processor and a guest for each kernel, all side by side: most tests wait, and waiting costs nothing
/// then; and times are right, so that tests may judge them.
pub(crate) fn main(args: &Args) -> anyhow::Result<()> {
    check_machine()?;
    setup::ensure(&[Need::KernelPrograms, Need::Lab, Need::Guests])?;
    build_ebpf::build(false)?;
    let programs = test::programs()?;
    let test = programs.iter().find(|program| program.is_kernel_test()).context("the workspace has no kernel tests")?;
    // As in cargo's target folder, so that a test finds our programs in the folder above its own.
    let test_path = format!("{TEST_FOLDER}/deps/{}", test.name);
    let mut files = vec![(stripped(&test.file)?, test_path.clone())];
    for program in programs.iter().filter(|program| program.is_ours() && OURS.contains(&program.name.as_str())) {
        files.push((stripped(&program.file)?, format!("{TEST_FOLDER}/{}", program.name)));
    }
    let folder = test.folder.to_str().context("the repository's path is not UTF-8")?.to_owned();
    let fixtures = test.folder.join("fixtures");
    if fixtures.exists() {
        files.push((fixtures, format!("{folder}/fixtures")));
    }
    // One test at a time: side by side on emulated processors they take as long, and keep each other waiting.
    let run = [effort(), test_path, "--show-output".to_owned(), "--test-threads=1".to_owned()];
    let clock = if args.real_time { vec![] } else { vec![VIRTUAL_TIME.to_owned()] };
    let words = [environment(), clock, run.to_vec(), args.filters.clone()].concat();

    let specs = if args.kernels.is_empty() { DEFAULT.map(str::to_owned).to_vec() } else { args.kernels.clone() };
    let guest = |spec: &String| -> anyhow::Result<Guest> {
        Ok(Guest {
            kernel: kernel(spec)?,
            files: files.clone(),
            folder: folder.clone(),
            virtual_time: (!args.real_time).then_some(SHIFT),
            cpus: 2,
            memory_mib: 1024,
            limit: Duration::from_secs(args.limit),
        })
    };
    let guests: Vec<Guest> = specs.iter().map(guest).collect::<Result<_, _>>()?;
    // A guest in virtual time has one processor and keeps one busy.
    let at_once = if args.real_time { 1 } else { thread::available_parallelism().map_or(1, NonZero::get) };
    let mut report = Report::default();
    let mut lines = Vec::new();
    let done = side_by_side(&guests, at_once, |guest| follow(&test.shown_name(), guest, &words));
    for (guest, (found, time)) in guests.iter().zip(done) {
        let (passed, failed) = (found.passed, found.failed);
        lines.push(format!("{}: {passed} passed, {failed} failed, {:.0} s", guest.kernel.release, time.as_secs_f64()));
        report.add(found);
    }
    println!("\nkernels:\n  {}", lines.join("\n  "));
    report.print();
    if report.failed > 0 {
        bail!("{}", report.failures());
    }
    Ok(())
}

/// Does `work` with each of `all`, with up to `at_once` of them at a time; what came of it, in their order.
fn side_by_side<T: Sync, R: Send>(all: &[T], at_once: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        while let number = next.fetch_add(1, Ordering::Relaxed)
            && let Some(one) = all.get(number)
        {
            done.push((number, work(one)));
        }
        done
    };
    let mut done: Vec<(usize, R)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once.min(all.len())).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker doesn't panic")).collect()
    });
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Runs a command in a guest and returns its status.
pub(crate) fn guest(args: &GuestArgs) -> anyhow::Result<u8> {
    check_machine()?;
    setup::ensure(&[Need::Lab, Need::Guests])?;
    let guest = Guest {
        kernel: kernel(&args.kernel)?,
        files: args.files.iter().map(|file| file_argument(file)).collect::<Result<_, _>>()?,
        folder: "/root".to_owned(),
        virtual_time: args.virtual_time.then_some(args.shift),
        cpus: args.cpus,
        memory_mib: args.memory,
        limit: Duration::from_secs(args.limit),
    };
    let words = [environment(), args.command.clone()].concat();
    let mut end = guest.start(&words, Stdio::inherit())?.wait()?;
    for _ in 1..TRIES {
        if end == End::Stillborn {
            eprintln!("guest: did not come up, started again");
            end = guest.start(&words, Stdio::inherit())?.wait()?;
        }
    }
    Ok(match end {
        End::Status(status) => status,
        End::Limit => {
            eprintln!("guest: not done after {} s", args.limit);
            124
        }
        End::Broken | End::Stillborn => {
            eprintln!("guest: ended without a status");
            125
        }
    })
}

pub(crate) fn check_machine() -> anyhow::Result<()> {
    ensure!(
        env::consts::ARCH == "x86_64",
        "guests are x86-64 and run programs of this machine, which is {}",
        env::consts::ARCH
    );
    Ok(())
}

pub(crate) fn kernel(spec: &str) -> anyhow::Result<Kernel> {
    let folder = image::folder()?;
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    image::kernel(spec).with_context(|| format!("kernel {spec}"))
}

/// Runs `words` in `guest` as the test program `name`: what it reported, and how long that took.
fn follow(name: &str, guest: &Guest, words: &[String]) -> (Report, Duration) {
    let start = Instant::now();
    let name = format!("{name} on {}", guest.kernel.release);
    let mut report = Report::default();
    // The other guests go on.
    if let Err(error) = run_tests(&mut report, &name, guest, words) {
        report.fail(format!("{name}: {error:#}"));
    }
    (report, start.elapsed())
}

fn run_tests(report: &mut Report, name: &str, guest: &Guest, words: &[String]) -> anyhow::Result<()> {
    let mut tries = 0;
    let (end, failed) = loop {
        let mut running = guest.start(words, Stdio::piped())?;
        let output = running.child.stdout.take().expect("the guest's output is piped");
        let mut screen = Screen::new(&guest.kernel.release);
        let failed = report.read_all(name, output, &mut screen)?;
        let end = running.wait()?;
        tries += 1;
        let is_emulators_fault = end == End::Stillborn || end == End::Broken && screen.tripped;
        if !is_emulators_fault || tries == TRIES {
            break (end, failed);
        }
        println!("{name}: the emulator broke the kernel, started again");
    };
    match end {
        End::Status(0) => {}
        End::Status(status) if failed == 0 => report.fail(format!("{name}: status {status}")),
        End::Status(_) => {}
        End::Limit => report.fail(format!("{name}: not done after {} s", guest.limit.as_secs())),
        End::Broken | End::Stillborn => report.fail(format!("{name}: the guest ended without a status")),
    }
    Ok(())
}

/// Standard output, which guests share: each line says which kernel it is from. Notes whether the kernel tripped over its
/// own patched code: QEMU lets a processor run what another one has just replaced; seen once in some thirty boots with two
/// of them.
struct Screen {
    prefix: String,
    tripped: bool,
}

impl Screen {
    /// For the kernel of this release, by its version alone.
    fn new(release: &str) -> Self {
        let version = release.split(['-', '+']).next().unwrap_or(release);
        Self { prefix: format!("{version} | "), tripped: false }
    }

    /// Whole lines, as they are shown.
    fn lines(&self, text: &[u8]) -> Vec<u8> {
        text.split_inclusive(|byte| *byte == b'\n').flat_map(|line| [self.prefix.as_bytes(), line].concat()).collect()
    }
}

impl io::Write for Screen {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        const TRIPPED: &[u8] = b"Oops: int3";
        self.tripped |= text.windows(TRIPPED.len()).any(|part| part == TRIPPED);
        io::stdout().lock().write_all(&self.lines(text))?;
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

/// `file` without debug information, which is most of a debug build: each MiB costs a guest 15 ms.
pub(crate) fn stripped(file: &Path) -> anyhow::Result<PathBuf> {
    let folder = root().join("target/guest");
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let small = folder.join(file.file_name().context("a program has a name")?);
    run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&small).arg(file))?;
    Ok(small)
}

/// What Rust programs are told by their environment goes with them into the guest.
pub(crate) fn environment() -> Vec<String> {
    let told = ["RUST_BACKTRACE", "RUST_LOG"].map(|name| Some(format!("{name}={}", env::var(name).ok()?)));
    [vec!["env".to_owned()], told.into_iter().flatten().collect()].concat()
}

/// How many connects tests make that would make as many as there is time for: fewer than on the machine itself, which is
/// some twenty times faster.
fn effort() -> String {
    format!("{EFFORT}={}", env::var(EFFORT).unwrap_or_else(|_| "5000".to_owned()))
}

/// `FILE` or `FILE:/PATH`.
fn file_argument(argument: &str) -> anyhow::Result<(PathBuf, String)> {
    let (file, path) = match argument.split_once(":/") {
        Some((file, path)) => (PathBuf::from(file), format!("/{path}")),
        None => {
            let file = PathBuf::from(argument);
            let name =
                file.file_name().and_then(|name| name.to_str()).with_context(|| format!("{argument} has no name"))?;
            let path = format!("{TEST_FOLDER}/{name}");
            (file, path)
        }
    };
    ensure!(file.exists(), "{} does not exist", file.display());
    Ok((file, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_done_once_and_results_keep_the_order() {
        let all: Vec<u32> = (0..50).collect();
        for at_once in [1, 3, 100] {
            assert_eq!(side_by_side(&all, at_once, |number| number * 2), all.iter().map(|n| n * 2).collect::<Vec<_>>());
        }
    }

    #[test]
    fn each_line_names_its_kernel() {
        let screen = Screen::new("6.12.57+deb12-cloud-amd64");
        assert_eq!(screen.lines(b"\n== tests\n"), b"6.12.57 | \n6.12.57 | == tests\n");
        assert_eq!(screen.lines(b""), b"");
    }

    #[test]
    fn a_file_goes_to_the_test_folder_unless_a_path_is_named() {
        assert_eq!(file_argument("Cargo.toml").unwrap(), ("Cargo.toml".into(), "/test/Cargo.toml".into()));
        assert_eq!(file_argument("src:/opt/src").unwrap(), ("src".into(), "/opt/src".into()));
        assert!(file_argument("no/such/file").is_err());
    }
}
