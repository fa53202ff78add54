//! Answers that still count, found by a keyed hash of their questions.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, timeout},
};

use super::ask::{ANSWER, Failure};

/// SHA-256 of a secret and a question. So a question may be as long as it likes, and one that is a credential is not kept.
type Key = [u8; 32];

/// Locked while it is asked for; with it, until when it counts.
type Answer<V> = AsyncMutex<Option<(V, Instant)>>;

/// A bounded number of answers. The same question is on its way once only.
pub(super) struct Answers<V> {
    /// `None` where the system has no randomness: nothing is kept then.
    secret: Option<Key>,
    kept: Mutex<HashMap<Key, Arc<Answer<V>>>>,
    room: usize,
}

impl<V: Clone> Answers<V> {
    pub(super) fn new(room: usize) -> Self {
        let mut secret = Key::default();
        let secret = getrandom::getrandom(&mut secret).ok().map(|()| secret);
        Self { secret, kept: Mutex::default(), room }
    }

    /// The answer to that question: what is known, or else what `ask` finds out. It counts for as long as `counts` says;
    /// not at all if that is nothing. Failures are not kept.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it leaves the question open for the next who has it.
    pub(super) async fn of(
        &self,
        question: &[u8],
        counts: impl FnOnce(&V) -> Duration,
        ask: impl Future<Output = Result<V, Failure>>,
    ) -> Result<V, Failure> {
        let slot = self.slot(question);
        let found = async {
            let mut answer = slot.lock().await;
            if let Some((value, until)) = &*answer
                && Instant::now() < *until
            {
                return Ok(value.clone());
            }
            *answer = None;
            let value = ask.await?;
            let counts = counts(&value);
            if !counts.is_zero() {
                *answer = Some((value.clone(), Instant::now() + counts));
            }
            Ok(value)
        };
        let late = |_| Err(Failure::Busy(format!("no answer in {ANSWER:?}")));
        timeout(ANSWER, found).await.unwrap_or_else(late)
    }

    /// Where that answer is kept. What finds no room is kept nowhere.
    fn slot(&self, question: &[u8]) -> Arc<Answer<V>> {
        let Some(secret) = &self.secret else { return Arc::default() };
        let key: Key = Sha256::new_with_prefix(secret).chain_update(question).finalize().into();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.get(&key) {
            return known.clone();
        }
        if kept.len() >= self.room {
            // Whoever ends next. One that is being asked for is locked, and stays.
            let until = |answer: &Answer<V>| Some(answer.try_lock().ok()?.as_ref().map(|(_, until)| *until));
            let idle = kept.iter().filter_map(|(key, answer)| Some((until(answer)?, *key)));
            let Some((_, last)) = idle.min() else { return Arc::default() };
            kept.remove(&last);
        }
        kept.entry(key).or_default().clone()
    }

    pub(super) fn len(&self) -> usize {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
