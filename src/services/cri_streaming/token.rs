//! One-time tokens, and what each stands for.

use std::{
    collections::VecDeque,
    hint::black_box,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use tokio::time::Instant;

use super::IssueError;
use crate::upgrade::{Subresource, Target};

/// How long a URL is good for. Upstream's `cacheTTL`: who asks for one uses it at once.
pub(super) const LIFETIME: Duration = Duration::from_secs(60);

/// Most URLs that wait to be used. Upstream's `maxInFlight`.
pub(super) const OUTSTANDING: usize = 1_000;

/// The bytes of a token; upstream's has 6.
const RANDOM: usize = 16;

/// A token in a URL: base64 without padding.
const TEXT: usize = 22;

/// The tokens that wait to be used, oldest first. They all live equally long, so that is the order in which they expire.
#[derive(Default)]
pub(super) struct Tokens(Mutex<VecDeque<Outstanding>>);

struct Outstanding {
    token: [u8; RANDOM],
    until: Instant,
    target: Arc<Target>,
}

impl Tokens {
    /// A new token for `target`.
    pub(super) fn issue(&self, target: Target) -> Result<String, IssueError> {
        let mut token = [0; RANDOM];
        getrandom::getrandom(&mut token).map_err(|error| IssueError::no_randomness(&error))?;
        let now = Instant::now();
        let mut outstanding = self.swept(now);
        if outstanding.len() >= OUTSTANDING {
            return Err(IssueError::too_many());
        }
        outstanding.push_back(Outstanding { token, until: now + LIFETIME, target: Arc::new(target) });
        Ok(BASE64_URL_SAFE_NO_PAD.encode(token))
    }

    /// Uses a token up, and returns what it stands for if that is a `subresource`.
    ///
    /// The whole table is looked through, so the time this takes says nothing of how much of a guess is right.
    pub(super) fn take(&self, subresource: Subresource, text: &str) -> Option<Arc<Target>> {
        let token = parse(text)?;
        let mut outstanding = self.swept(Instant::now());
        let found = outstanding.iter().enumerate().fold(None, |found, (at, each)| match same(&each.token, &token) {
            true => Some(at),
            false => found,
        });
        let Outstanding { target, .. } = outstanding.remove(found?)?;
        (target.subresource == subresource).then_some(target)
    }

    /// The table without what has expired.
    fn swept(&self, now: Instant) -> MutexGuard<'_, VecDeque<Outstanding>> {
        let mut outstanding = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while outstanding.front().is_some_and(|oldest| oldest.until <= now) {
            outstanding.pop_front();
        }
        outstanding
    }
}

fn parse(text: &str) -> Option<[u8; RANDOM]> {
    if text.len() != TEXT {
        return None;
    }
    BASE64_URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

/// Compares in constant time: every byte is looked at, whatever the others were.
fn same(a: &[u8; RANDOM], b: &[u8; RANDOM]) -> bool {
    let different = a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b));
    black_box(different) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::cri_streaming::tests::attach;

    const ATTACH: Subresource = Subresource::Attach;

    #[test]
    fn a_token_has_128_bits_and_is_never_the_same_again() {
        let tokens = Tokens::default();
        let mut issued: Vec<String> = (0..OUTSTANDING).map(|_| tokens.issue(attach("c")).expect("room")).collect();
        assert!(issued.iter().all(|text| parse(text).is_some()));
        issued.sort_unstable();
        issued.dedup();
        assert_eq!(issued.len(), OUTSTANDING);
    }

    #[test]
    fn a_token_that_differs_in_one_bit_or_in_how_it_is_written_is_none() {
        let tokens = Tokens::default();
        let issued = tokens.issue(attach("c")).expect("room");
        let bytes = parse(&issued).expect("a token");
        for bit in 0..RANDOM * 8 {
            let mut guess = bytes;
            guess[bit / 8] ^= 1 << (bit % 8);
            assert!(tokens.take(ATTACH, &BASE64_URL_SAFE_NO_PAD.encode(guess)).is_none(), "bit {bit}");
        }
        let (short, long) = (&issued[..TEXT - 1], format!("{issued}="));
        for guess in ["", "/", "é", short, &long, &"A".repeat(TEXT), &" ".repeat(TEXT), &"é".repeat(TEXT / 2)] {
            assert!(tokens.take(ATTACH, guess).is_none(), "{guess:?}");
        }
        assert!(tokens.take(ATTACH, &issued).is_some(), "a wrong guess uses nothing up");
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_lives_for_less_than_a_minute() {
        let tokens = Tokens::default();
        let (first, second) = (tokens.issue(attach("1")).expect("room"), tokens.issue(attach("2")).expect("room"));
        tokio::time::advance(LIFETIME - Duration::from_millis(1)).await;
        assert_eq!(tokens.take(ATTACH, &first).expect("in time").container.as_deref(), Some("1"));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(tokens.take(ATTACH, &second).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_free_again_after_use_and_after_a_minute() {
        let tokens = Tokens::default();
        let first = tokens.issue(attach("first")).expect("room");
        tokio::time::advance(LIFETIME / 2).await;
        let mut last = first.clone();
        for _ in 1..OUTSTANDING {
            last = tokens.issue(attach("c")).expect("room");
        }
        assert!(tokens.issue(attach("one-too-many")).expect_err("full").is_resource_exhausted());
        assert!(tokens.take(ATTACH, &last).is_some());
        tokens.issue(attach("for-a-used-one")).expect("room");
        assert!(tokens.issue(attach("one-too-many")).is_err());
        // The first one expires, alone.
        tokio::time::advance(LIFETIME / 2).await;
        tokens.issue(attach("for-an-expired-one")).expect("room");
        assert!(tokens.issue(attach("one-too-many")).is_err());
        tokio::time::advance(LIFETIME).await;
        assert!(tokens.swept(Instant::now()).is_empty());
    }
}
