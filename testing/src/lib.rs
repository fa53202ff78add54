//! Fakes and peers for the tests of `tower-kube-streaming`.
