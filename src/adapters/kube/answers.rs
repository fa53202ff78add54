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

/// Locked while it is asked for.
type Answer<V> = AsyncMutex<Known<V>>;

/// What became of a question.
enum Known<V> {
    Nothing,
    /// With it, until when it counts.
    Value(V, Instant),
    /// When that was found out: it is the answer to all who have waited for it, and to nobody else.
    Failure(Failure, Instant),
}

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
    /// not at all if that is nothing. A failure is told to all who wait for it, and is not kept.
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
        let asked = Instant::now();
        let found = async {
            let mut known = slot.lock().await;
            match &*known {
                Known::Value(value, until) if Instant::now() < *until => return Ok(value.clone()),
                Known::Failure(failure, at) if asked < *at => return Err(failure.clone()),
                _ => *known = Known::Nothing,
            }
            let answer = ask.await;
            let now = Instant::now();
            *known = match &answer {
                Ok(value) => match counts(value) {
                    Duration::ZERO => Known::Nothing,
                    counts => Known::Value(value.clone(), now + counts),
                },
                Err(failure) => Known::Failure(failure.clone(), now),
            };
            answer
        };
        let late = |_| Err(Failure::Busy(format!("no answer in {ANSWER:?}")));
        timeout(ANSWER, found).await.unwrap_or_else(late)
    }

    /// Where that answer is kept. What finds no room is kept nowhere.
    fn slot(&self, question: &[u8]) -> Arc<Answer<V>> {
        let Some(secret) = &self.secret else { return nowhere() };
        let key: Key = Sha256::new_with_prefix(secret).chain_update(question).finalize().into();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.get(&key) {
            return known.clone();
        }
        if kept.len() >= self.room {
            // Whoever ends next. One that is being asked for is locked, and stays.
            let until = |answer: &Answer<V>| match &*answer.try_lock().ok()? {
                Known::Value(_, until) => Some(Some(*until)),
                Known::Nothing | Known::Failure(..) => Some(None),
            };
            let idle = kept.iter().filter_map(|(key, answer)| Some((until(answer)?, *key)));
            let Some((_, last)) = idle.min() else { return nowhere() };
            kept.remove(&last);
        }
        kept.entry(key).or_insert_with(nowhere).clone()
    }

    pub(super) fn len(&self) -> usize {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

fn nowhere<V>() -> Arc<Answer<V>> {
    Arc::new(AsyncMutex::new(Known::Nothing))
}
