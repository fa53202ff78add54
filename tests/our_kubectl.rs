//! The example kubectl, as a process: which way it goes, what it says, its terminal, its copies, its forwards. The corpus that it
//! shares with real kubectls is in `tests/kubectl.rs`.

#[path = "our_kubectl/archives.rs"]
mod archives;
#[path = "our_kubectl/copies.rs"]
mod copies;
#[path = "our_kubectl/forwards.rs"]
mod forwards;
#[path = "our_kubectl/objects.rs"]
mod objects;
#[path = "our_kubectl/pods.rs"]
mod pods;
mod support;
#[path = "our_kubectl/terminals.rs"]
mod terminals;
#[path = "our_kubectl/ways.rs"]
mod ways;
#[path = "our_kubectl/words.rs"]
mod words;

/// Modules of the example that are looked at from within.
#[allow(dead_code, reason = "the example uses the rest")]
#[path = "../examples/kubectl"]
mod kubectl {
    pub(crate) mod detach;
    pub(crate) mod failure;
    pub(crate) mod progress;
    pub(crate) mod terminal;
    pub(crate) mod unpack;
}
