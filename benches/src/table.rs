//! The table, and whether its bars hold.

/// What a figure is counted in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    /// Multiples of the relay, or of whatever the row names.
    Times,
    Milliseconds,
    /// 1,000 bytes.
    Kilobytes,
    Cores,
}

/// How good a figure has to be: the bar, then the aim.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    AtMost(f64, f64),
    AtLeast(f64, f64),
    /// For information.
    None,
}

/// One line.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) work: &'static str,
    pub(crate) unit: Unit,
    pub(crate) ours: f64,
    /// The figure before it was put in relation.
    pub(crate) measured: String,
    pub(crate) go: &'static str,
    pub(crate) limit: Limit,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Times => format!("{value:.2} x"),
            Self::Milliseconds => format!("{value:.2} ms"),
            Self::Kilobytes => format!("{value:.1} kB"),
            Self::Cores => format!("{value:.4}"),
        }
    }
}

impl Row {
    fn verdict(&self) -> &'static str {
        let (bar, aim) = match self.limit {
            Limit::AtMost(bar, aim) => (self.ours <= bar, self.ours <= aim),
            Limit::AtLeast(bar, aim) => (self.ours >= bar, self.ours >= aim),
            Limit::None => return "",
        };
        match (bar, aim) {
            (_, true) => "aim",
            (true, false) => "bar",
            (false, false) => "**missed**",
        }
    }

    fn limits(&self) -> [String; 2] {
        let (sign, bar, aim) = match self.limit {
            Limit::AtMost(bar, aim) => ("<=", bar, aim),
            Limit::AtLeast(bar, aim) => (">=", bar, aim),
            Limit::None => return Default::default(),
        };
        [bar, aim].map(|limit| format!("{sign} {}", self.unit.show(limit)))
    }
}

/// Prints the rows in Markdown. Returns how many bars were missed.
pub(crate) fn print(rows: &[Row]) -> usize {
    println!("| work through the proxy | ours | measured | Go | bar | aim | holds |");
    println!("|---|---|---|---|---|---|---|");
    for row in rows {
        let [bar, aim] = row.limits();
        let ours = row.unit.show(row.ours);
        println!("| {} | **{ours}** | {} | {} | {bar} | {aim} | {} |", row.work, row.measured, row.go, row.verdict());
    }
    rows.iter().filter(|row| row.verdict() == "**missed**").count()
}
