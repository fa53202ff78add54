//! The latest changes, so that a watch goes on where another one ended.

use std::{collections::VecDeque, sync::Arc};

use serde_json::Value;

use super::kinds::Kind;

/// Changes that are kept. Who is further behind lists again, as upstream has it do.
const KEPT: usize = 1024;

/// One object became another one.
#[derive(Debug)]
pub struct Change {
    pub version: u64,
    pub kind: Kind,
    /// `None`: it was not there.
    pub before: Option<Arc<Value>>,
    /// `None`: it is gone.
    pub after: Option<Arc<Value>>,
}

/// Changes in the order of their versions.
#[derive(Debug)]
pub struct History {
    changes: VecDeque<Arc<Change>>,
    /// The version of the newest change that is not kept any more.
    floor: u64,
}

impl History {
    /// Nothing is known of what was up to this version.
    pub fn since(floor: u64) -> Self {
        Self { changes: VecDeque::new(), floor }
    }

    pub fn push(&mut self, change: Change) {
        if self.changes.len() == KEPT
            && let Some(oldest) = self.changes.pop_front()
        {
            self.floor = oldest.version;
        }
        self.changes.push_back(Arc::new(change));
    }

    /// What came after that version; `None` where not all of it is known, or it is none of ours.
    pub fn after(&self, version: u64) -> Option<Vec<Arc<Change>>> {
        let newest = self.changes.back().map_or(self.floor, |change| change.version);
        if version < self.floor || version > newest {
            return None;
        }
        let from = self.changes.partition_point(|change| change.version <= version);
        Some(self.changes.range(from..).cloned().collect())
    }
}
