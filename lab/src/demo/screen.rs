//! What a person sees while scenes are played: on a terminal a table that is redrawn, else a line when something has ended.

use super::{Scene, summary::SceneResult};
use crate::{cleanup, clusters::NAMES, report::Report};
use anyhow::{Context, Result};
use crossterm::{
    cursor::MoveToPreviousLine,
    queue,
    style::{Print, Stylize},
    terminal::{Clear, ClearType, size},
};
use std::{
    collections::VecDeque,
    io::{IsTerminal, Stdout, Write, stdout},
    time::{Duration, Instant},
};

/// The time that rates are averaged over.
const AVERAGE: Duration = Duration::from_secs(1);
/// The widest row of the table, in columns.
const WIDTH: usize = 72;
/// How often the table is redrawn.
const REDRAW: Duration = Duration::from_millis(200);

/// Standard output.
pub(crate) struct Screen {
    out: Stdout,
    terminal: bool,
    lines: u16,
    drawn: Option<Instant>,
    history: VecDeque<(Instant, Vec<(String, Report)>)>,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let out = stdout();
        Self { terminal: out.is_terminal(), out, lines: 0, drawn: None, history: VecDeque::new() }
    }

    /// Prints a line for good.
    pub(crate) fn say(&mut self, line: &str) -> Result<()> {
        self.replace(&[], &format!("{line}\n"))
    }

    /// Shows how a scene is going: a row for each client.
    /// How things stand follows, if `state` says it.
    pub(super) fn draw(
        &mut self,
        scene: &Scene,
        time: Duration,
        reports: &[(String, Report)],
        state: Option<&str>,
    ) -> Result<()> {
        if !self.terminal || self.drawn.is_some_and(|drawn| drawn.elapsed() < REDRAW) {
            return Ok(());
        }
        let now = Instant::now();
        self.drawn = Some(now);
        // Clients that ended and others that began can't be compared.
        self.history.retain(|(_, old)| old.len() == reports.len());
        while self.history.len() > 1 && now - self.history[1].0 >= AVERAGE {
            self.history.pop_front();
        }
        let most = self.width().saturating_sub(1);
        let about: String = format!("{}: {}", scene.name, scene.shows).chars().take(most).collect();
        let mut lines = vec![
            about.bold().to_string(),
            format!("{:>5.1} s   answers a second from      {}   failed", time.as_secs_f64(), columns(NAMES).dim()),
        ];
        for (row, (who, report)) in reports.iter().enumerate() {
            let since = self.history.front().map(|(then, old)| (now - *then, &old[row].1));
            let rates = NAMES.map(|name| match since {
                Some((time, old)) if report.requests >= old.requests => rate(report, old, name, time),
                _ => "-".to_owned(),
            });
            let failed = format!("{:>6}", report.failed);
            let failed = if report.failed == 0 { failed.green() } else { failed.red() };
            lines.push(format!("          {who:<27}{}   {failed}", columns(rates.each_ref().map(String::as_str))));
        }
        lines.extend(state.map(|state| state.chars().take(most).collect()));
        self.history.push_back((now, reports.to_vec()));
        self.replace(&lines, "")
    }

    /// Prints how a scene ended.
    pub(crate) fn scene_ended(&mut self, result: &SceneResult) -> Result<()> {
        self.history.clear();
        self.drawn = None;
        let verdict = match (result.passed(), self.terminal) {
            (true, true) => "ok    ".green().to_string(),
            (false, true) => "FAILED".red().to_string(),
            (true, false) => "ok    ".to_owned(),
            (false, false) => "FAILED".to_owned(),
        };
        let mut text = format!("{verdict} {}\n", result.line());
        for line in result.troubles() {
            text.push_str(&format!("       {line}\n"));
        }
        self.replace(&[], &text)
    }

    fn width(&self) -> usize {
        size().map_or(0, |(width, _)| usize::from(width))
    }

    fn height(&self) -> usize {
        size().map_or(0, |(_, height)| usize::from(height))
    }

    /// Puts `text` where the table was, and the table `lines` below it.
    fn replace(&mut self, lines: &[String], text: &str) -> Result<()> {
        cleanup::hold_if_ending();
        let (width, height) = (self.width(), self.height());
        let mut draw = || -> std::io::Result<()> {
            if self.lines > 0 {
                queue!(self.out, MoveToPreviousLine(self.lines), Clear(ClearType::FromCursorDown))?;
            }
            queue!(self.out, Print(text))?;
            // What the terminal folds or scrolls away can't be replaced.
            let shown = if width >= WIDTH && height > lines.len() { lines } else { &[] };
            for line in shown {
                queue!(self.out, Print(line), Print("\n"))?;
            }
            self.lines = u16::try_from(shown.len()).unwrap_or_default();
            self.out.flush()
        };
        draw().context("write to standard output")
    }
}

fn columns<T: AsRef<str>>(names: [T; 3]) -> String {
    names.each_ref().map(|name| format!("{:>7}", name.as_ref())).concat()
}

fn rate(new: &Report, old: &Report, cluster: &str, time: Duration) -> String {
    let count = |report: &Report| report.by_cluster.get(cluster).copied().unwrap_or_default();
    let answers = count(new).saturating_sub(count(old));
    let answers = u32::try_from(answers).unwrap_or(u32::MAX);
    format!("{:.0}", f64::from(answers) / time.as_secs_f64())
}
