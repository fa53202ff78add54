#![allow(unreachable_pub, reason = "only this test binary uses it")]
//! All series of one `/metrics`, and how they changed.

use std::{collections::BTreeMap, fmt};

use crate::support::Outcome;

/// Values by `name{labels}`.
#[derive(Clone, Debug, Default)]
pub struct Series(BTreeMap<String, f64>);

/// How a series is to change; one that is not named must not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    Exactly(f64),
    /// By what nobody can know before: bytes of frames, a command that is stopped at some moment.
    More,
    /// Likewise, or not at all: a client may have nothing to say.
    Any,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(by) => write!(f, "{by}"),
            Self::More => f.write_str("more"),
            Self::Any => f.write_str("any"),
        }
    }
}

pub type Changes = BTreeMap<String, Change>;

impl Series {
    pub fn parse(text: &str) -> Outcome<Self> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series = lines.map(|line| {
            let (name, value) = line.rsplit_once(' ').ok_or_else(|| format!("no value: {line}"))?;
            Ok((name.to_owned(), value.parse().map_err(|_| format!("no number: {line}"))?))
        });
        series.collect::<Outcome<_>>().map(Self)
    }

    /// How they have changed since.
    pub fn until(&self, after: &Self) -> Self {
        Self(after.0.iter().map(|(name, value)| (name.clone(), value - self.0.get(name).unwrap_or(&0.0))).collect())
    }

    /// Holds every series to what is expected, and all others to zero. How long something took is no one's to expect: of a
    /// histogram the count is exact, no bucket has more, and a sum only grows with the count.
    pub fn compare(&self, wanted: &Changes) -> Outcome {
        let mut wrong: Vec<String> = wanted
            .keys()
            .filter(|name| !self.0.contains_key(*name))
            .map(|name| format!("{name} is not there"))
            .collect();
        for (name, by) in &self.0 {
            let right = match (wanted.get(name), self.count_of(name)) {
                (Some(Change::Exactly(wanted)), _) => by == wanted,
                (Some(Change::More), _) => *by > 0.0,
                (Some(Change::Any), _) => *by >= 0.0,
                (None, Some(count)) if name.contains("_bucket{") => (0.0..=count).contains(by),
                (None, Some(count)) => (count == 0.0 && *by == 0.0) || (count > 0.0 && *by > 0.0),
                (None, None) => *by == 0.0,
            };
            if !right {
                let wanted = wanted.get(name).map_or_else(|| "0".to_owned(), Change::to_string);
                wrong.push(format!("{name} changed by {by} instead of {wanted}"));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }

    /// By how much the histogram grew whose sum or finite bucket this is.
    fn count_of(&self, name: &str) -> Option<f64> {
        let (family, labels) = name.split_once('{')?;
        let family = family.strip_suffix("_sum").or_else(|| family.strip_suffix("_bucket"))?;
        let labels: Vec<&str> =
            labels.trim_end_matches('}').split(',').filter(|label| !label.starts_with("le=")).collect();
        self.0.get(&format!("{family}_count{{{}}}", labels.join(","))).copied()
    }
}

#[test]
fn a_series_that_nobody_expected_is_found_and_so_is_one_that_did_not_change() {
    let text = "# HELP a_total x\na_total{x=\"1\"} 3\nb_total 0\nc_sum{} 0.5\nc_bucket{le=\"1\"} 1\nc_count{} 1\n";
    let changed = Series::default().until(&Series::parse(text).expect("metrics"));
    let wanted =
        |pairs: &[(&str, Change)]| pairs.iter().map(|(name, by)| ((*name).to_owned(), *by)).collect::<Changes>();
    let (a, c) = (("a_total{x=\"1\"}", Change::Exactly(3.0)), ("c_count{}", Change::Exactly(1.0)));
    assert_eq!(changed.compare(&wanted(&[a, c])), Ok(()));
    assert_eq!(changed.compare(&wanted(&[("a_total{x=\"1\"}", Change::More), c])), Ok(()));
    for wrong in [&[c][..], &[a], &[a, c, ("b_total", Change::More)], &[a, c, ("z_total", Change::More)]] {
        assert!(changed.compare(&wanted(wrong)).is_err(), "{wrong:?}");
    }
}
