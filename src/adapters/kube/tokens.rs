//! Who is it: asked by `TokenReview`, as upstream's webhook authenticator does
//! (`k8s.io/apiserver` `plugin/pkg/authenticator/token/webhook`, behind `pkg/authentication/token/cache`).

use std::{fmt, sync::Arc, time::Duration};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::Client;
use serde::Deserialize;

use super::{answers::Answers, ask::Api};
use crate::upgrade::{Caller, Refusal};

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// How long a caller counts: upstream's `--authentication-token-webhook-cache-ttl`. A token that was taken back is good for
/// so long.
const KNOWN: Duration = Duration::from_secs(2 * 60);

/// How long a token counts for nobody's: one that is not valid yet, or of an account that is just being created.
const UNKNOWN: Duration = Duration::from_secs(10);

/// Most answers that are kept.
const KEPT: usize = 4096;

/// Longest token in bytes; a head of a request is not much longer.
const TOKEN: usize = 64 << 10;

/// Longest caller in bytes that is kept: with a few hundred groups.
const CALLER: usize = 32 << 10;

/// Asks a cluster whose token it is, by `TokenReview`. Cheap to clone; clones share their answers.
///
/// A caller counts for 2 minutes, and nobody for 10 seconds; 4,096 answers at most, found by a keyed hash of the token,
/// which itself is not kept. Failures are never kept. A question is tried three times within 10 s.
///
/// Needs `create` on `tokenreviews.authentication.k8s.io` (the cluster role `system:auth-delegator`).
#[derive(Clone)]
pub struct TokenReviews(Arc<Reviews>);

struct Reviews {
    api: Api,
    answers: Answers<Option<Arc<Caller>>>,
}

/// The review as it is answered, without the token.
#[derive(Deserialize)]
struct Answered {
    #[serde(default)]
    status: TokenReviewStatus,
}

impl TokenReviews {
    /// Asks with that client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self(Arc::new(Reviews { api: Api::new(client), answers: Answers::new(KEPT) }))
    }

    /// Whose token it is; `None` if it is nobody's. Who is somebody is also in the group `system:authenticated`.
    ///
    /// # Errors
    ///
    /// 503 with `Retry-After` if the API cannot be asked or does not answer in time, 500 if it answers, but not that.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it leaves nothing behind.
    pub async fn caller(&self, token: &str) -> Result<Option<Caller>, Refusal> {
        if token.is_empty() || token.len() > TOKEN {
            return Ok(None);
        }
        let spec = TokenReviewSpec { token: Some(token.into()), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let review = serde_json::to_vec(&review).map_err(|error| Refusal::internal(error.to_string()))?;
        let Reviews { api, answers } = &*self.0;
        let ask = async {
            let Answered { status } = api.review(PATH, review).await?;
            Ok(caller(status).map(Arc::new))
        };
        let caller = answers.of(token.as_bytes(), counts, ask).await;
        let caller = caller.map_err(|failure| failure.refusal("tokenreviews"))?;
        Ok(caller.map(Arc::unwrap_or_clone))
    }
}

/// Who the cluster says it is. Its error is why it is nobody, and not told.
fn caller(status: TokenReviewStatus) -> Option<Caller> {
    let authenticated = status.authenticated.unwrap_or_default();
    let UserInfo { username, uid, groups, extra } = status.user.filter(|_| authenticated)?;
    let name = username.filter(|name| !name.is_empty())?;
    let mut caller = Caller::new(name, groups.unwrap_or_default());
    caller.uid = uid.unwrap_or_default();
    caller.extra = extra.unwrap_or_default();
    // As upstream's `AuthenticatedGroupAdder`.
    let nobody = caller.name == "system:anonymous" || caller.is_in("system:unauthenticated");
    if !nobody && !caller.is_in("system:authenticated") {
        caller.groups.push("system:authenticated".into());
    }
    Some(caller)
}

fn counts(caller: &Option<Arc<Caller>>) -> Duration {
    match caller {
        None => UNKNOWN,
        Some(caller) if size(caller) <= CALLER => KNOWN,
        Some(_) => Duration::ZERO,
    }
}

fn size(caller: &Caller) -> usize {
    let extra = caller.extra.iter().flat_map(|(key, values)| [key].into_iter().chain(values));
    let words = caller.groups.iter().chain(extra).map(|word| word.len() + size_of::<String>());
    caller.name.len() + caller.uid.len() + words.sum::<usize>()
}

impl fmt::Debug for TokenReviews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenReviews").field("kept", &self.0.answers.len()).finish_non_exhaustive()
    }
}
