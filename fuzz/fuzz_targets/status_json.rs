//! No bytes of an error stream are a success unless they are JSON whose `status` says so.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_kube_streaming::remote_command::{
    Exit, Version,
    status::{self, Outcome},
};

fuzz_target!(|bytes: &[u8]| {
    let outcome = status::decode(bytes);
    // As Go reads it: a broken character in a text nobody needs does not matter.
    let json: Option<serde_json::Value> = serde_json::from_str(&String::from_utf8_lossy(bytes)).ok();
    let said = json.as_ref().and_then(|json| json.get("status")).and_then(|status| status.as_str());
    match outcome {
        Outcome::Exited(Exit::Success) => assert_eq!(said, Some("Success"), "a false success"),
        Outcome::Exited(Exit::Code(code)) => {
            assert_eq!(said, Some("Failure"));
            assert_ne!(code, 0, "a failure with the exit code of a success");
            // What is understood is told to the next hop as it was.
            let exit = Exit::Code(code);
            let told = status::encode(Version::V5, &Ok(exit.clone()));
            assert_eq!(status::decode(told.as_bytes()), Outcome::Exited(exit));
        }
        Outcome::Failed(why) => {
            assert_eq!(said, Some("Failure"));
            let told = status::encode_failure(Version::V5, &why);
            assert!(matches!(status::decode(told.as_bytes()), Outcome::Failed(_)), "{told}");
        }
        Outcome::Exited(_) | Outcome::Invalid(_) => {}
    }
});
