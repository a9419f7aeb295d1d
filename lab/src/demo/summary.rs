//! How the scenes ended, for people and for programs.

use crate::{attempts::Figures, clusters::NAMES, report::Report};
use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, fs, path::Path, time::Duration};

/// Failures of a scene whose text is shown.
const FAILURES_SHOWN: usize = 5;

/// All of it: what `--json` writes.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) scenes: Vec<SceneResult>,
    kernel: String,
    /// Time that the clusters took to be built and ready.
    setup_seconds: f64,
    /// Time that everything took.
    pub(crate) seconds: f64,
    /// What was still there at the end and should not have been.
    pub(crate) left_behind: Vec<String>,
}

/// How a scene ended.
#[derive(Debug, Serialize)]
pub(crate) struct SceneResult {
    name: &'static str,
    passed: bool,
    /// Requests of all clients, failed ones included.
    requests: u64,
    failed: u64,
    /// The first requests that failed.
    failures: Vec<FailureShown>,
    /// Answers by the cluster they came from.
    by_cluster: BTreeMap<String, u64>,
    /// The same, by the cluster that the client is in.
    by_client: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Sockets that saw another peer's address than the one they dialled.
    other_peer: u64,
    /// Microseconds that connects took, of the worst client: the median, the 99th percentile, the longest.
    connect_us: [u64; 3],
    seconds: f64,
    facts: Map<String, Value>,
    notes: Vec<String>,
    /// Why it failed, if its requests didn't.
    error: Option<String>,
    /// Whatever else the scene has; what has the name of one of the above is in its place.
    #[serde(flatten)]
    fields: Map<String, Value>,
}

/// What a scene saw, and says of itself.
#[derive(Default)]
pub(crate) struct Said {
    /// What callers in each cluster have seen.
    reports: BTreeMap<&'static str, Report>,
    /// Values beside the usual ones; with them, the scene itself decides which failed requests it passes with.
    fields: Option<Map<String, Value>>,
    facts: Map<String, Value>,
    notes: Vec<String>,
}

impl Said {
    /// Puts what a caller in `cluster` has seen into the table.
    pub(crate) fn count(&mut self, cluster: &'static str, report: &Report) {
        self.reports.entry(cluster).or_default().add(report);
    }

    /// Puts what callers in `cluster` amount to into the table, and `fields` beside the scene's own into the JSON. From
    /// here on the scene decides which failures it passes with.
    pub(crate) fn sum(&mut self, cluster: &'static str, figures: &Figures, fields: Map<String, Value>) {
        let sum = Report {
            requests: figures.requests,
            failed: figures.failed,
            by_cluster: figures.by_cluster.clone(),
            other_peer: figures.other_peer,
            ..Report::default()
        };
        self.count(cluster, &sum);
        self.fields.get_or_insert_default().extend(fields);
    }

    /// Puts a value beside the scene's own into the JSON.
    pub(crate) fn field(&mut self, name: &str, value: Value) {
        self.fields.get_or_insert_default().insert(name.to_owned(), value);
    }

    /// Puts a figure into the JSON.
    pub(crate) fn fact(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    /// Puts a time into the JSON, in milliseconds; the name says so.
    pub(crate) fn fact_ms(&mut self, name: &str, time: Duration) {
        self.fact(name, u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    }

    /// Tells people something in the summary.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

#[derive(Debug, Serialize)]
struct FailureShown {
    client: &'static str,
    /// When the request began, after the scene did.
    seconds: f64,
    error: String,
}

impl SceneResult {
    pub(crate) fn new(name: &'static str, began: Duration, time: Duration, said: Said, outcome: Result<()>) -> Self {
        let mut total = Report::default();
        let mut failures = Vec::new();
        for (&client, report) in &said.reports {
            total.add(report);
            failures.extend(report.failures.iter().map(|failure| FailureShown {
                client,
                seconds: failure.began.saturating_sub(began).as_secs_f64(),
                error: failure.error.clone(),
            }));
        }
        failures.sort_by(|one, other| one.seconds.total_cmp(&other.seconds));
        Self {
            name,
            passed: outcome.is_ok()
                && total.requests > 0
                && (total.failed == 0 || said.fields.is_some())
                && total.other_peer == 0,
            requests: total.requests,
            failed: total.failed,
            failures,
            by_cluster: total.by_cluster,
            by_client: said.reports.into_iter().map(|(client, report)| (client, report.by_cluster)).collect(),
            other_peer: total.other_peer,
            connect_us: total.connect_us,
            seconds: time.as_secs_f64(),
            facts: said.facts,
            notes: said.notes,
            fields: said.fields.unwrap_or_default(),
            error: outcome.err().map(|error| format!("{error:#}")),
        }
    }

    /// Whether it showed what it should.
    pub(crate) fn passed(&self) -> bool {
        self.passed
    }

    /// How it ended, in a line.
    pub(crate) fn line(&self) -> String {
        let answers: Vec<String> =
            self.by_cluster.iter().map(|(cluster, count)| format!("{cluster} {count}")).collect();
        format!(
            "{:<16}{:>5} requests, {} failed ({}), {:.1} s",
            self.name,
            self.requests,
            self.failed,
            answers.join(", "),
            self.seconds
        )
    }

    /// What went wrong, in lines.
    pub(crate) fn troubles(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.error.iter().cloned().collect();
        if self.other_peer > 0 {
            lines.push(format!("{} sockets saw another peer than the ClusterIP", self.other_peer));
        }
        if self.requests == 0 {
            lines.push("there was no request".to_owned());
        }
        for failure in self.failures.iter().take(FAILURES_SHOWN) {
            lines.push(format!("client in {}, after {:.2} s: {}", failure.client, failure.seconds, failure.error));
        }
        lines
    }
}

impl Summary {
    pub(crate) fn new(setup: Duration) -> Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's version")?;
        Ok(Self {
            scenes: Vec::new(),
            kernel: kernel.trim().to_owned(),
            setup_seconds: setup.as_secs_f64(),
            seconds: 0.0,
            left_behind: Vec::new(),
        })
    }

    /// Whether every scene showed what it should and nothing was left behind.
    pub(crate) fn passed(&self) -> bool {
        self.scenes.iter().all(SceneResult::passed) && self.left_behind.is_empty()
    }

    /// Prints the table.
    pub(crate) fn print(&self) {
        let [west, east, north] = NAMES;
        println!("\n{:<16}{:>9}{:>8}{west:>8}{east:>8}{north:>8}   what was seen", "scene", "requests", "failed");
        for scene in &self.scenes {
            let from = |cluster: &str| scene.by_cluster.get(cluster).copied().unwrap_or_default();
            let mut notes = scene.notes.iter();
            let first = if scene.passed { notes.next().map_or("ok", String::as_str) } else { "FAILED" };
            println!(
                "{:<16}{:>9}{:>8}{:>8}{:>8}{:>8}   {first}",
                scene.name,
                scene.requests,
                scene.failed,
                from(west),
                from(east),
                from(north)
            );
            for note in notes {
                println!("{:60}{note}", "");
            }
        }
        for left in &self.left_behind {
            println!("left behind: {left}");
        }
        let verdict = if self.passed() { "all passed" } else { "NOT all passed" };
        println!("kernel {}, {:.0} s: {verdict}", self.kernel, self.seconds);
    }
}

/// Writes what came of it to `file`, as JSON.
pub(crate) fn write(played: Result<&Summary, &anyhow::Error>, file: &Path) -> Result<()> {
    let mut value = match played {
        Ok(summary) => serde_json::to_value(summary).context("write the summary as JSON")?,
        Err(error) => json!({"scenes": [], "error": format!("{error:#}")}),
    };
    value["passed"] = played.is_ok_and(Summary::passed).into();
    let text = serde_json::to_string_pretty(&value).context("write the summary as JSON")?;
    fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))
}
