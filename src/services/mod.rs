//! Leaves and ready-made stacks.

mod api_server;
pub mod cri_streaming;
mod in_process;
mod kubelet;
pub mod streaming_server;
pub mod throttle;
pub mod upgrade_proxy;

pub use api_server::{ApiServer, ApiServerBuilder};
pub use cri_streaming::CriStreaming;
pub use in_process::InProcess;
pub use kubelet::{Kubelet, KubeletBuilder};
pub use streaming_server::StreamingServer;
pub use throttle::Throttled;
pub use upgrade_proxy::{Connect, TcpConnect, UpgradeProxy};
