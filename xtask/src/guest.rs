//! Runs a command in a guest: another kernel in QEMU, without hardware virtualisation, up in about 3 s.
//!
//! A guest has no disk: it gets the kernel's modules, tools of this machine with their libraries, and the files of the
//! run as initramfs archives. The command's output comes back by the first serial port, its status by the second, and with
//! it what the command wrote there, to [`RESULTS`].

mod bzimage;
mod cpio;
pub(crate) mod image;
mod modules;

use crate::process::{find, output, text};
use anyhow::Context;
use cpio::Archive;
use image::Kernel;
use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// Programs of this machine that every guest has. The last four are in busybox too, but there they run busybox's own
/// programs, whatever PATH says.
const TOOLS: [&str; 10] = ["sh", "ip", "ss", "tc", "nft", "bpftool", "unshare", "nsenter", "env", "timeout"];

/// Tables of names, for `ip` and `nft`.
const TABLES: [&str; 3] = ["/etc/protocols", "/etc/services", "/etc/iproute2"];

/// Where the files of a run lie in the guest, if it doesn't say.
pub(crate) const TEST_FOLDER: &str = "/test";

/// The file that a command in a guest writes what is to come back apart from its output: text of whole lines.
pub(crate) const RESULTS: &str = "/dev/ttyS1";

/// How a guest is to be made.
pub(crate) struct Guest {
    /// Its kernel.
    pub(crate) kernel: Kernel,
    /// Files and folders of this machine, and where they go.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// Where the command starts.
    pub(crate) folder: String,
    /// Count time in instructions and jump over idling, on one CPU: what waits or measures comes out the same on a
    /// loaded machine, and sleeping costs nothing.
    pub(crate) virtual_time: Option<Shift>,
    /// Processors, in real time.
    pub(crate) cpus: u32,
    /// Memory.
    pub(crate) memory_mib: u32,
    /// When to give up.
    pub(crate) limit: Duration,
}

/// An instruction takes 2 to the power of so many nanoseconds of virtual time.
pub(crate) type Shift = u8;

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With the command's status.
    Status(u8),
    /// By the limit.
    Limit,
    /// Without a status: a panic, or no memory.
    Broken,
    /// Before it was up, be it that it hung. Now and then a kernel that patches its own code trips over it on two emulated processors.
    Stillborn,
}

/// A guest that was started. Its output is `child`'s.
pub(crate) struct Running {
    /// QEMU, below `timeout`.
    pub(crate) child: Child,
    run: RunFolder,
}

impl Guest {
    /// Starts a guest that runs `words` as root. Standard output and standard error are one stream, `stdout`.
    pub(crate) fn start(&self, words: &[String], stdout: Stdio) -> anyhow::Result<Running> {
        let run = RunFolder::create()?;
        fs::write(run.file("initrd"), self.initrd(words)?).context("write the guest's files")?;
        let log = fs::File::create(run.file("qemu.log")).context("create QEMU's log")?;
        let mut command = self.qemu(&run);
        let child = command.stdin(Stdio::null()).stdout(stdout).stderr(log).spawn();
        Ok(Running { child: child.with_context(|| format!("run {}", text(&command)))?, run })
    }

    fn qemu(&self, run: &RunFolder) -> Command {
        // In the foreground, so that an interrupt from the keyboard reaches QEMU.
        let mut command = Command::new("timeout");
        command.args(["--foreground", "--kill-after", "5", &self.limit.as_secs().to_string(), "qemu-system-x86_64"]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-machine", "q35,usb=off,sata=off,smbus=off,hpet=off,vmport=off"]);
        // A processor with fast `rep movsb` has the kernel clear and copy byte by byte, and each byte is emulated: a test took
        // twice as long in the kernel.
        command.args(["-cpu", "max,la57=off,erms=off,fsrm=off"]);
        if let Some(shift) = self.virtual_time {
            let icount = format!("shift={shift},sleep=off");
            // With two processors, counting instructions hangs at boot.
            command.args(["-accel", "tcg,thread=single", "-icount", &icount, "-smp", "1"]);
        } else {
            command.args(["-accel", "tcg,thread=multi", "-smp", &self.cpus.to_string()]);
        }
        command.args(["-m", &self.memory_mib.to_string()]);
        command.arg("-kernel").arg(&self.kernel.vmlinux).arg("-initrd").arg(run.file("initrd"));
        // acpi_pm: the TSC is calibrated at boot, on a busy machine several times too fast.
        let append = "console=ttyS0 quiet loglevel=3 panic=-1 reboot=t mitigations=off clocksource=acpi_pm \
                      cryptomgr.notests no5lvl audit=0";
        command.args(["-append", append]);
        command.args(["-chardev", "stdio,id=out,signal=off", "-device", "isa-serial,index=0,chardev=out"]);
        let status = format!("file,id=status,path={}", run.file("status").display());
        command.args(["-chardev", &status, "-device", "isa-serial,index=1,chardev=status"]);
        command
    }

    /// The guest's files: tools and files of the run, then the modules.
    fn initrd(&self, words: &[String]) -> anyhow::Result<Vec<u8>> {
        let mut archive = Archive::default();
        archive.file("/init", 0o755, include_bytes!("guest/init"))?;
        archive.file("/cmd", 0o644, script(&self.folder, words).as_bytes())?;
        for folder in ["/dev", "/proc", "/sys", "/tmp", "/run", "/root", "/var", &self.folder] {
            archive.folder(folder)?;
        }
        archive.symlink("/var/run", "../run")?;
        archive.file("/etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\n")?;
        archive.file("/etc/group", 0o644, b"root:x:0:\n")?;
        archive.file("/etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n")?;
        for table in TABLES {
            if Path::new(table).exists() {
                archive.copy(Path::new(table), table)?;
            }
        }
        for tool in TOOLS {
            let file = find(tool).with_context(|| format!("{tool} is not on this machine"))?;
            program(&mut archive, &file, &format!("/bin/{tool}"))?;
        }
        program(&mut archive, &find("busybox").context("busybox is not on this machine")?, "/bin/busybox")?;
        for applet in output(Command::new("busybox").arg("--list"))?.lines() {
            archive.symlink(&format!("/bin/{applet}"), "busybox")?;
        }
        // What the kernel starts to load a module.
        archive.symlink("/sbin/modprobe", "../bin/busybox")?;
        for (file, path) in &self.files {
            if file.is_dir() { archive.copy(file, path)? } else { program(&mut archive, file, path)? }
        }
        let modules = &self.kernel.modules;
        let modules = fs::read(modules).with_context(|| format!("read {}", modules.display()))?;
        Ok([archive.finish(), modules].concat())
    }
}

impl Running {
    /// Waits for the end.
    pub(crate) fn wait(self) -> anyhow::Result<End> {
        Ok(self.wait_for_results()?.0)
    }

    /// Waits for the end; what the command wrote to [`RESULTS`] too, which is whole only if it ended with a status.
    pub(crate) fn wait_for_results(mut self) -> anyhow::Result<(End, String)> {
        let status = self.child.wait().context("wait for QEMU")?;
        let text = fs::read_to_string(self.run.file("status")).unwrap_or_default();
        let (results, end) = end(&text, status.code());
        if matches!(end, End::Broken | End::Stillborn) {
            let log = fs::read_to_string(self.run.file("qemu.log")).context("read QEMU's log")?;
            eprint!("{log}");
        }
        Ok((end, results.to_owned()))
    }
}

/// What the second serial port's `text` and the exit code of `timeout` say: the command's results, and how it ended.
fn end(text: &str, code: Option<i32>) -> (&str, End) {
    let Some(told) = text.strip_prefix("up\n") else { return ("", End::Stillborn) };
    // The last line, if it is whole.
    let (results, last) = match told.strip_suffix('\n').map(|told| told.rfind('\n').map_or(0, |end| end + 1)) {
        Some(last) => told.split_at(last),
        None => (told, ""),
    };
    match last.trim_end().parse() {
        Ok(status) => (results, End::Status(status)),
        // 124: the limit; 137: and QEMU had to be killed.
        Err(_) if matches!(code, Some(124 | 137)) => (told, End::Limit),
        Err(_) => (told, End::Broken),
    }
}

/// The guest's shell script that runs `words` in `folder`.
fn script(folder: &str, words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| quote(word)).collect();
    format!("cd {} || exit\nexec {}\n", quote(folder), quoted.join(" "))
}

fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Adds a file and, if it is a program, the shared libraries that it needs.
fn program(archive: &mut Archive, file: &Path, path: &str) -> anyhow::Result<()> {
    archive.copy(file, path)?;
    // It fails for scripts, static programs and data, which need none.
    let Ok(libraries) = output(Command::new("ldd").arg(file)) else { return Ok(()) };
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        if !archive.contains(library) {
            archive.copy(Path::new(library), library)?;
        }
    }
    Ok(())
}

/// A folder for one run's files, which is gone afterwards.
struct RunFolder(PathBuf);

impl RunFolder {
    fn create() -> anyhow::Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let kernels = image::folder()?;
        for old in fs::read_dir(&kernels).with_context(|| format!("read {}", kernels.display()))? {
            let old = old?.path();
            // One that was left behind by a run that was killed.
            let pid = old.file_name().and_then(|name| name.to_str()?.strip_prefix("run-"));
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                match fs::remove_dir_all(&old) {
                    // Another guest that starts just now was quicker.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    done => done.with_context(|| format!("remove {}", old.display()))?,
                }
            }
        }
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let folder = kernels.join(format!("run-{}", std::process::id())).join(number.to_string());
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self(folder))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("remove {}: {error}", self.0.display());
        }
        // The last one takes the folder of all along.
        if let Some(all) = self.0.parent() {
            fs::remove_dir(all).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_guest_as_they_are() {
        let words = ["sh", "-c", "echo it's \"$HOME\" a  b; exit 3"].map(str::to_owned);
        let script = script("/", &words).replace("exec 'sh'", "exec 'printf' '%s.' 'sh'");
        assert_eq!(
            output(Command::new("sh").args(["-c", &script])).unwrap(),
            "sh.-c.echo it's \"$HOME\" a  b; exit 3."
        );
    }

    #[test]
    fn a_guest_ends_with_the_commands_status_or_says_why_there_is_none() {
        let end = |text, code| end(text, Some(code)).1;
        assert_eq!(end("up\n3\n", 0), End::Status(3));
        assert_eq!(end("up\n", 124), End::Limit);
        assert_eq!(end("", 137), End::Stillborn);
        assert_eq!(end("up\n", 137), End::Limit);
        assert_eq!(end("up\n", 0), End::Broken);
        assert_eq!(end("", 0), End::Stillborn);
    }

    #[test]
    fn results_come_before_the_status() {
        assert_eq!(end("up\n{\n}\n0\n", Some(0)), ("{\n}\n", End::Status(0)));
        assert_eq!(end("up\n{\n", Some(0)), ("{\n", End::Broken));
        assert_eq!(end("up\n{\n  \"a\": 1", Some(124)), ("{\n  \"a\": 1", End::Limit));
        assert_eq!(end("up\n0\n", Some(0)).0, "");
    }
}
