//! Which servers refused WebSocket and took SPDY.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Servers that are remembered; of more, the oldest is forgotten.
const SERVERS: usize = 1024;

/// Servers, each until a moment.
pub(super) struct Memory {
    time: Duration,
    until: Mutex<HashMap<String, Instant>>,
}

impl Memory {
    pub(super) fn new(time: Duration) -> Self {
        Self { time, until: Mutex::default() }
    }

    pub(super) fn has(&self, server: &str) -> bool {
        self.until().get(server).is_some_and(|until| Instant::now() < *until)
    }

    pub(super) fn add(&self, server: String) {
        // A time beyond the clock's end is no time to remember.
        let Some(expiry) = Instant::now().checked_add(self.time).filter(|_| !self.time.is_zero()) else { return };
        let mut until = self.until();
        if until.len() >= SERVERS && !until.contains_key(&server) {
            let now = Instant::now();
            until.retain(|_, until| now < *until);
            let oldest = until.iter().min_by_key(|(_, until)| **until).map(|(server, _)| server.clone());
            if let Some(oldest) = oldest.filter(|_| until.len() >= SERVERS) {
                until.remove(&oldest);
            }
        }
        until.insert(server, expiry);
    }

    pub(super) fn forget(&self, server: &str) {
        self.until().remove(server);
    }

    fn until(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_is_forgotten_when_its_time_is_up_and_the_oldest_when_there_are_too_many() {
        let memory = Memory::new(Duration::from_secs(10));
        for number in 0..=SERVERS {
            memory.add(number.to_string());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(!memory.has("0") && memory.has("1"));
        assert_eq!(memory.until().len(), SERVERS);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!memory.has("1"));
        let none = Memory::new(Duration::ZERO);
        none.add("a".into());
        assert!(!none.has("a"));
    }
}
