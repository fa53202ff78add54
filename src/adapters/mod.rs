//! Feature-gated implementations of the seams on other people's crates.
