//! Running other programs.

use anyhow::{Context, bail};
use std::{
    env,
    ffi::OsStr,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Runs `command` with this program's own input and output; an error names it and its exit status.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("run {}", text(command)))?;
    if !status.success() {
        bail!("{}: {status}", text(command));
    }
    Ok(())
}

/// Runs `command` without input and returns its standard output; an error carries what it wrote to standard error.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("run {}", text(command)))?;
    if !done.status.success() {
        bail!("{}: {}: {}", text(command), done.status, String::from_utf8_lossy(&done.stderr).trim());
    }
    String::from_utf8(done.stdout).with_context(|| format!("output of {}", text(command)))
}

/// `command` as a person would type it.
pub(crate) fn text(command: &Command) -> String {
    let words: Vec<_> =
        [command.get_program()].into_iter().chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// Where `program` lies: in PATH, or where Debian keeps what is meant for root and not in everybody's PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Whether this program runs as root.
pub(crate) fn is_root() -> anyhow::Result<bool> {
    Ok(output(Command::new("id").arg("-u"))?.trim() == "0")
}

/// The words to put before a command to run it as root: none for root, else sudo, if it works without a password or
/// a person is there to type one. `None`: there is no way.
pub(crate) fn root_prefix() -> anyhow::Result<Option<Vec<&'static str>>> {
    if is_root()? {
        return Ok(Some(Vec::new()));
    }
    let person = io::stdin().is_terminal();
    let works = || output(Command::new("sudo").args(["-n", "true"])).is_ok();
    if find("sudo").is_some() && (person || works()) { Ok(Some(vec!["sudo"])) } else { Ok(None) }
}

/// A command that starts `program` behind the words of [`root_prefix`].
pub(crate) fn prefixed(prefix: &[&str], program: impl AsRef<OsStr>) -> Command {
    let Some((first, rest)) = prefix.split_first() else { return Command::new(program) };
    let mut command = Command::new(first);
    command.args(rest).arg(program);
    command
}

/// Writes `contents` to `file` unless it holds just that, so that a build which depends on it isn't repeated for nothing.
/// Whether it wrote.
pub(crate) fn write_if_changed(file: &Path, contents: &[u8]) -> anyhow::Result<bool> {
    if std::fs::read(file).is_ok_and(|old| old == contents) {
        return Ok(false);
    }
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    // Renamed into place: a reader finds the old file or the new one, whole.
    let new = file.with_extension("new");
    std::fs::write(&new, contents).with_context(|| format!("write {}", new.display()))?;
    std::fs::rename(&new, file).with_context(|| format!("rename {} to {}", new.display(), file.display()))?;
    Ok(true)
}

/// What `command` writes to standard output when it is given `input`.
pub(crate) fn filter(command: &mut Command, input: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {}", text(command)))?;
    let mut stdin = child.stdin.take().expect("the child's input is piped");
    let done = std::thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.write_all(input));
        let done = child.wait_with_output();
        // A program that refuses its input ends early, which its status tells better than the broken pipe.
        (done, writer.join().expect("the writer doesn't panic"))
    });
    let (output, written) = (done.0.with_context(|| format!("output of {}", text(command)))?, done.1);
    if !output.status.success() {
        bail!("{}: {}: {}", text(command), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    written.with_context(|| format!("input of {}", text(command)))?;
    Ok(output.stdout)
}
