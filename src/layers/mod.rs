//! Tower layers: each acts on a streaming request, or forwards it unchanged.
