//! Peers and measuring client for `scripts/bench`.
