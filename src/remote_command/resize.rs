//! Terminal sizes on the wire: JSON objects one after another, cut anywhere.

use super::TerminalSize;

/// Longest object that is waited for; a size takes 29 bytes.
const MAX_OBJECT: usize = 1024;

/// Reads sizes from a byte stream. Malformed input is skipped to the next line, never an error: a session does not end
/// over a terminal's size.
#[derive(Debug, Default)]
pub(crate) struct ResizeDecoder {
    /// The beginning of an object whose end has not come.
    partial: Vec<u8>,
}

impl ResizeDecoder {
    /// Takes the next bytes and returns the last whole size in them: only the latest counts.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Option<TerminalSize> {
        let mut latest = None;
        for &byte in bytes {
            if self.partial.is_empty() && byte.is_ascii_whitespace() {
                continue;
            }
            if byte == b'\n' || self.partial.len() == MAX_OBJECT {
                self.partial.clear();
                continue;
            }
            self.partial.push(byte);
            if byte == b'}' {
                match serde_json::from_slice(&self.partial) {
                    Ok(size) => latest = Some(size),
                    // Not the error itself: it quotes what it did not expect.
                    Err(error) => tracing::debug!(why = ?error.classify(), "malformed terminal size ignored"),
                }
                self.partial.clear();
            }
        }
        latest.filter(|size: &TerminalSize| size.width > 0 && size.height > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(width: u16, height: u16) -> Option<TerminalSize> {
        Some(TerminalSize { width, height })
    }

    #[test]
    fn sizes_cut_anywhere_are_read() {
        let wire = b"{\"Width\":80,\"Height\":24}\n{\"Width\":132,\"Height\":44}\n";
        for cut in 0..wire.len() {
            let mut decoder = ResizeDecoder::default();
            let first = decoder.push(&wire[..cut]);
            assert_eq!(decoder.push(&wire[cut..]).or(first), size(132, 44), "cut at {cut}");
        }
    }

    #[test]
    fn garbage_and_zero_sizes_are_ignored_and_the_next_size_is_read() {
        let mut decoder = ResizeDecoder::default();
        assert_eq!(decoder.push(b"}}{nonsense}\n{\"Width\":0,\"Height\":24}\n"), None);
        assert_eq!(decoder.push(&vec![b'x'; 5000]), None);
        assert_eq!(decoder.push(b"\n{\"width\":1,\"height\":2}"), size(1, 2));
    }
}
