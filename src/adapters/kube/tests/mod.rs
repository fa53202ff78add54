//! Against an API server that answers by a script. Against the example's: `tests/kube_adapter.rs`.

mod cluster;
mod objects;
mod reviews;
mod script;
