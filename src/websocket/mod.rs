//! WebSocket (RFC 6455) as Kubernetes speaks it.
