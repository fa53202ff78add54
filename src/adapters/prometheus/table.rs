//! Atomics in a table with one cell for each combination of label values, so that there can be no more series than that.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// A label's name and all values it can have.
pub(super) type Label = (&'static str, &'static [&'static str]);

/// A counter or a gauge.
#[derive(Debug)]
pub(super) struct Table {
    head: Head,
    cells: Box<[AtomicU64]>,
}

impl Table {
    pub(super) fn counter(name: impl Into<String>, help: &'static str, labels: &[Label]) -> Self {
        Self::new(Head { name: name.into(), help, kind: "counter", labels: labels.into() })
    }

    pub(super) fn gauge(name: impl Into<String>, help: &'static str, labels: &[Label]) -> Self {
        Self::new(Head { name: name.into(), help, kind: "gauge", labels: labels.into() })
    }

    fn new(head: Head) -> Self {
        let cells = zeros(head.rows());
        Self { head, cells }
    }

    pub(super) fn add(&self, values: &[&str], by: u64) {
        self.cells[self.head.row(values)].fetch_add(by, Relaxed);
    }

    /// Of a gauge: takes back one that was added.
    pub(super) fn take_one(&self, values: &[&str]) {
        self.cells[self.head.row(values)].fetch_sub(1, Relaxed);
    }

    pub(super) fn render(&self, text: &mut String) {
        self.head.render(text);
        for (row, cell) in self.cells.iter().enumerate() {
            let (name, labels) = (&self.head.name, self.head.labels_of(row));
            line(text, format_args!("{name}{{{labels}}} {}", cell.load(Relaxed)));
        }
    }
}

/// A histogram of times.
#[derive(Debug)]
pub(super) struct Histogram {
    head: Head,
    /// Upper bounds in seconds, without the last bucket's.
    bounds: &'static [f64],
    /// For each row one count for each bucket; not cumulative.
    counts: Box<[AtomicU64]>,
    /// For each row the sum in microseconds: 64 bits hold half a million years.
    sums: Box<[AtomicU64]>,
}

impl Histogram {
    pub(super) fn new(name: String, help: &'static str, labels: &[Label], bounds: &'static [f64]) -> Self {
        let head = Head { name, help, kind: "histogram", labels: labels.into() };
        let rows = head.rows();
        Self { head, bounds, counts: zeros(rows * (bounds.len() + 1)), sums: zeros(rows) }
    }

    pub(super) fn observe(&self, values: &[&str], time: Duration) {
        let row = self.head.row(values);
        let bucket = self.bounds.partition_point(|bound| *bound < time.as_secs_f64());
        self.counts[row * (self.bounds.len() + 1) + bucket].fetch_add(1, Relaxed);
        self.sums[row].fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn render(&self, text: &mut String) {
        self.head.render(text);
        let name = &self.head.name;
        for (row, (counts, sum)) in self.counts.chunks(self.bounds.len() + 1).zip(&self.sums).enumerate() {
            let labels = self.head.labels_of(row);
            let bounds = self.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
            let mut total = 0;
            for (count, bound) in counts.iter().zip(bounds) {
                total += count.load(Relaxed);
                line(text, format_args!("{name}_bucket{{{labels},le=\"{bound}\"}} {total}"));
            }
            let sum = Duration::from_micros(sum.load(Relaxed)).as_secs_f64();
            line(text, format_args!("{name}_sum{{{labels}}} {sum}"));
            line(text, format_args!("{name}_count{{{labels}}} {total}"));
        }
    }
}

/// What is common to all series of a name.
#[derive(Debug)]
struct Head {
    name: String,
    help: &'static str,
    kind: &'static str,
    labels: Box<[Label]>,
}

impl Head {
    fn rows(&self) -> usize {
        self.labels.iter().map(|(_, values)| values.len()).product()
    }

    /// The row of these values, one for each label. A value that a label does not have counts as its last.
    fn row(&self, values: &[&str]) -> usize {
        self.labels.iter().zip(values).fold(0, |row, ((_, known), value)| {
            row * known.len() + known.iter().position(|known| known == value).unwrap_or(known.len() - 1)
        })
    }

    fn labels_of(&self, mut row: usize) -> String {
        let mut pairs: Vec<String> = Vec::new();
        for (name, values) in self.labels.iter().rev() {
            pairs.push(format!("{name}=\"{}\"", values[row % values.len()]));
            row /= values.len();
        }
        pairs.reverse();
        pairs.join(",")
    }

    fn render(&self, text: &mut String) {
        let Self { name, help, kind, .. } = self;
        line(text, format_args!("# HELP {name} {help}"));
        line(text, format_args!("# TYPE {name} {kind}"));
    }
}

fn zeros(length: usize) -> Box<[AtomicU64]> {
    (0..length).map(|_| AtomicU64::new(0)).collect()
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes everything");
}
