//! What test programs say, line by line, and the summary of it.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    process::Child,
};

/// The line that begins with this names something that a test did not do, and why.
const SKIPPED: &str = "skipped: ";

/// Counts over all test programs that were read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed, and programs that ended badly without naming one.
    pub(crate) failed: u64,
    /// Names of failed tests, each with its program.
    failures: Vec<String>,
    /// What was not tested, each with the program and the reason.
    skipped: Vec<String>,
}

impl Report {
    /// Reads the output of a test program, the piped one of `child`, and its status, which [`Report::read_all`] can't see.
    pub(crate) fn follow(&mut self, program: &str, mut child: Child, screen: &mut dyn Write) -> io::Result<()> {
        let output = child.stdout.take().expect("the child's output is piped");
        let failed = self.read_all(program, output, screen)?;
        let status = child.wait()?;
        if !status.success() && failed == 0 {
            self.fail(format!("{program}: {status}"));
        }
        Ok(())
    }

    /// Reads a test program's output to its end, passes what a person needs on to `screen`, and counts. Returns how
    /// many failures the program named.
    pub(crate) fn read_all(&mut self, program: &str, output: impl Read, screen: &mut dyn Write) -> io::Result<u64> {
        let before = self.failed;
        let mut view = View::new(program);
        for line in BufReader::new(output).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end();
            self.read(program, line);
            screen.write_all(view.show(line).as_bytes())?;
        }
        Ok(self.failed - before)
    }

    /// Takes one line of `program`'s output in.
    pub(crate) fn read(&mut self, program: &str, line: &str) {
        if let Some(reason) = line.strip_prefix(SKIPPED) {
            self.skip(format!("{program}: {reason}"));
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
        } else if let Some((name, outcome)) = line.strip_prefix("test ").and_then(|test| test.rsplit_once(" ... ")) {
            if outcome.starts_with("FAILED") {
                self.failures.push(format!("{program}: {name}"));
            } else if let Some(why) = outcome.strip_prefix("ignored") {
                self.skip(format!("{program}: {name}{why}"));
            }
        }
    }

    /// Counts one failure that no test stands for.
    pub(crate) fn fail(&mut self, what: String) {
        self.failed += 1;
        self.failures.push(what);
    }

    /// Notes what was not tested, once.
    pub(crate) fn skip(&mut self, what: String) {
        if !self.skipped.contains(&what) {
            self.skipped.push(what);
        }
    }

    /// Takes over what another one gathered.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        other.skipped.into_iter().for_each(|what| self.skip(what));
    }

    /// How much failed, in a sentence's words.
    pub(crate) fn failures(&self) -> String {
        format!("{} of {} tests failed", self.failed, self.passed + self.failed)
    }

    /// Prints what failed and what was skipped; the counts come last.
    pub(crate) fn print(&self) {
        for (title, lines) in [("skipped:", &self.skipped), ("failed:", &self.failures)] {
            if !lines.is_empty() {
                println!("\n{title}\n  {}", lines.join("\n  "));
            }
        }
        println!("\n{} passed, {} failed", self.passed, self.failed);
    }
}

/// What of a test program's output is shown: all but what Rust's test harness prints for programs without tests, and its
/// second list of the tests that passed.
struct View<'a> {
    program: &'a str,
    announced: bool,
    /// Without tests: what the harness says about it is left out.
    empty: bool,
    /// Within the list of the tests that passed.
    list: bool,
    blank: bool,
}

impl<'a> View<'a> {
    fn new(program: &'a str) -> Self {
        Self { program, announced: false, empty: false, list: false, blank: true }
    }

    /// What to print for `line`, its end included; nothing for some.
    fn show(&mut self, line: &str) -> String {
        if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            self.empty = line == "running 0 tests";
        }
        self.list = line == "successes:" || (self.list && line.starts_with("    "));
        let blank = line.is_empty();
        let hidden = self.list || (blank && self.blank) || self.empty;
        if hidden {
            return String::new();
        }
        self.blank = blank;
        let heading = if self.announced { String::new() } else { format!("\n== {}\n", self.program) };
        self.announced = true;
        format!("{heading}{line}\n")
    }
}

/// The number before `word` in `ok. 3 passed; 0 failed; …`, 0 if there is none.
fn count(counts: &str, word: &str) -> u64 {
    counts
        .split([';', '.'])
        .filter_map(|part| part.trim().split_once(' '))
        .find(|(_, name)| *name == word)
        .and_then(|(number, _)| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn counts_failures_and_reasons_are_gathered_over_programs() {
        let mut report = Report::default();
        for line in [
            "running 3 tests",
            "test a_name ... ok",
            "test b::another ... FAILED",
            "test c ... ignored, needs a moon",
            "skipped: MPTCP is not in this kernel",
            "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            report.read("kernel", line);
        }
        report.read(
            "plan",
            "test result: ok. 20 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        );
        report.read("kernel", "skipped: MPTCP is not in this kernel");
        let expected = Report {
            passed: 21,
            failed: 1,
            failures: vec!["kernel: b::another".into()],
            skipped: vec!["kernel: c, needs a moon".into(), "kernel: MPTCP is not in this kernel".into()],
        };
        assert_eq!(report, expected);
    }

    #[test]
    fn a_program_that_dies_without_a_result_counts_as_a_failure() {
        let (report, _) = follow("echo started; exit 3");
        assert_eq!((report.passed, report.failed), (0, 1));
    }

    #[test]
    fn a_failing_program_that_named_its_failure_counts_it_once() {
        let (report, _) = follow("echo 'test result: FAILED. 1 passed; 2 failed; 0 ignored'; exit 101");
        assert_eq!((report.passed, report.failed), (1, 2));
    }

    #[test]
    fn what_passing_tests_print_is_shown_and_their_second_list_is_not() {
        let script = "printf '\\nrunning 1 test\\ntest a ... ok\\n\\nsuccesses:\\n\\n---- a stdout ----\\n12 ns\\n\\n\\nsuccesses:\\n    a\\n'";
        assert_eq!(follow(script).1, "\n== kernel\nrunning 1 test\ntest a ... ok\n\n---- a stdout ----\n12 ns\n\n");
    }

    #[test]
    fn a_program_without_tests_is_not_mentioned() {
        let script = "printf '\\nrunning 0 tests\\n\\nsuccesses:\\n\\nsuccesses:\\n\\ntest result: ok. 0 passed; 0 failed\\n\\n'";
        assert_eq!(follow(script).1, "");
    }

    fn follow(script: &str) -> (Report, String) {
        let mut report = Report::default();
        let child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut screen = Vec::new();
        report.follow("kernel", child, &mut screen).unwrap();
        (report, String::from_utf8(screen).unwrap())
    }
}
