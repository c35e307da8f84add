//! The printed report: tables whose ratios come first and whose absolute figures are marked as this run's, the targets at
//! the end, and every round in a file for a closer look.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::options::Options;

/// A run's report.
#[derive(Debug)]
pub struct Report {
    machine: Value,
    rounds: Vec<Value>,
    targets: Vec<Vec<String>>,
    quick: bool,
}

/// The condition of a target.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
}

impl Report {
    /// Says on what machine and which disk it runs; refuses a folder in memory, where fdatasync means nothing.
    pub fn begin(options: &Options, folder: &Path) -> anyhow::Result<Report> {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let processors = std::thread::available_parallelism().map_or(0, usize::from);
        let filesystem = filesystem(folder).context("find the folder's file system")?;
        anyhow::ensure!(
            !matches!(filesystem.as_str(), "tmpfs" | "ramfs"),
            "{} is in memory: choose a folder on the disk to be measured with --dir",
            folder.display()
        );
        println!("connect-relay, measured against the same work without it: medians of {} round(s).", options.rounds());
        println!(
            "This machine: {processors} processors, Linux {}, {filesystem}. Its absolute figures are its own.",
            kernel.trim()
        );
        if options.quick {
            println!("--quick: one short round, to see that it runs. None of these figures is worth quoting.");
        }
        let machine = json!({"processors": processors, "kernel": kernel.trim(), "filesystem": filesystem});
        Ok(Report { machine, rounds: Vec::new(), targets: Vec::new(), quick: options.quick })
    }

    /// Keeps a round's figures for the file.
    pub fn round(&mut self, section: &str, subject: &str, round: u32, figures: Value) {
        self.rounds.push(json!({"section": section, "subject": subject, "round": round, "figures": figures}));
    }

    /// Holds a figure against what was asked for; nothing is said of what was not measured.
    pub fn target(&mut self, what: &str, target: Target, unit: &str, found: Option<f64>) {
        let Some(found) = found else { return };
        let (asked, met) = match target {
            Target::AtLeast(least) => (format!("at least {least}{unit}"), found >= least),
            Target::AtMost(most) => (format!("at most {most}{unit}"), found <= most),
        };
        let verdict = if met { "met" } else { "MISSED" };
        self.targets.push(vec![what.to_owned(), asked, format!("{found:.2}{unit}"), verdict.to_owned()]);
    }

    /// Prints the targets and writes the file.
    pub fn finish(self, path: Option<&Path>) -> anyhow::Result<()> {
        if !self.targets.is_empty() {
            let mut table = Table::new(&["", "asked", "this run", ""], &[]);
            self.targets.iter().for_each(|target| table.row(target.clone()));
            table.print("Targets", "");
        }
        let Some(path) = path else { return Ok(()) };
        let raw = json!({"machine": self.machine, "quick": self.quick, "rounds": self.rounds});
        let text = serde_json::to_string(&raw)?;
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }
}

/// A table: a name and ratios on the left of the bar, this run's own figures on the right.
#[derive(Debug)]
pub struct Table {
    ratios: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these columns.
    pub fn new(ratios: &[&str], absolutes: &[&str]) -> Table {
        let head = ratios.iter().chain(absolutes).map(|name| (*name).to_owned()).collect();
        Table { ratios: ratios.len(), rows: vec![head] }
    }

    /// One more row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Prints it under a title, with what must be known to read it.
    pub fn print(&self, title: &str, note: &str) {
        println!("\n{title}");
        if !note.is_empty() {
            println!("{note}");
        }
        let columns = self.rows[0].len();
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        if columns > self.ratios {
            let left = widths[..self.ratios].iter().map(|width| width + 2).sum::<usize>();
            println!("{:<left$}  |  this run, this machine", "  ratios");
        }
        for cells in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                let bar = if column == self.ratios { "  |" } else { "" };
                // Formatting into a String cannot fail.
                let _ =
                    if column == 0 { write!(line, "  {cell:<width$}") } else { write!(line, "{bar}  {cell:>width$}") };
            }
            println!("{}", line.trim_end());
        }
    }
}

/// A ratio, or a dash.
pub fn ratio(figure: Option<f64>) -> String {
    figure.map_or_else(dash, |figure| if figure < 10.0 { format!("{figure:.2}") } else { format!("{figure:.0}") })
}

/// A whole number with its thousands apart, or a dash.
pub fn whole(figure: Option<f64>) -> String {
    figure.map_or_else(dash, |figure| {
        let digits = format!("{figure:.0}");
        let mut shown = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                shown.push(',');
            }
            shown.push(digit);
        }
        shown
    })
}

/// A figure with one decimal, or a dash.
pub fn tenths(figure: Option<f64>) -> String {
    figure.map_or_else(dash, |figure| format!("{figure:.1}"))
}

/// Seconds as milliseconds, or a dash.
pub fn millis(seconds: Option<f64>) -> String {
    let shown = |seconds: f64| if seconds < 0.1 { format!("{:.2}", seconds * 1e3) } else { whole(Some(seconds * 1e3)) };
    seconds.map_or_else(dash, shown)
}

/// Bytes as MiB, or a dash.
pub fn mebibytes(bytes: Option<f64>) -> String {
    tenths(bytes.map(|bytes| bytes / 1_048_576.0))
}

/// A duration's seconds, for a median.
pub fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

fn dash() -> String {
    "-".to_owned()
}

fn filesystem(folder: &Path) -> anyhow::Result<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    // Of equal mount points the later one covers the earlier.
    let nearest = mounts.filter(|(point, _)| folder.starts_with(point)).max_by_key(|(point, _)| point.len());
    Ok(nearest.context("no mount point")?.1.to_owned())
}
