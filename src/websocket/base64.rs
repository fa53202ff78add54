//! Standard padded base64, decoded in place as it arrives.

/// Go's `base64.StdEncoding`: line ends are skipped, padding must be there, spare bits may be anything.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Decoder {
    /// Bits that do not make a byte yet.
    bits: u16,
    /// Characters of the current group of four, padding included.
    chars: u8,
    /// Padding was seen: nothing but padding may follow.
    padded: bool,
}

/// The input is no base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Decoder {
    /// Decodes the next characters in place and returns how many bytes they gave: never more than there were
    /// characters.
    pub(super) fn decode(&mut self, chars: &mut [u8]) -> Result<usize, Malformed> {
        let mut written = 0;
        for at in 0..chars.len() {
            let char = chars[at];
            if matches!(char, b'\r' | b'\n') {
                continue;
            }
            if self.padded && self.chars == 0 {
                return Err(Malformed);
            }
            if char == b'=' {
                if self.chars < 2 {
                    return Err(Malformed);
                }
                self.padded = true;
            } else {
                if self.padded {
                    return Err(Malformed);
                }
                self.bits = (self.bits << 6) | u16::from(value(char).ok_or(Malformed)?);
                if self.chars > 0 {
                    // Characters 1, 2 and 3 complete a byte, with 4, 2 and 0 bits to spare.
                    let spare = 6 - 2 * self.chars;
                    chars[written] = (self.bits >> spare) as u8;
                    self.bits &= (1 << spare) - 1;
                    written += 1;
                }
            }
            self.chars = (self.chars + 1) % 4;
        }
        Ok(written)
    }

    /// Ends the message.
    pub(super) fn finish(self) -> Result<(), Malformed> {
        if self.chars == 0 { Ok(()) } else { Err(Malformed) }
    }
}

fn value(char: u8) -> Option<u8> {
    Some(match char {
        b'A'..=b'Z' => char - b'A',
        b'a'..=b'z' => char - b'a' + 26,
        b'0'..=b'9' => char - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    use proptest::prelude::*;

    fn decode(input: &[u8], cut: usize) -> Result<Vec<u8>, Malformed> {
        let mut decoder = Decoder::default();
        let mut output = Vec::new();
        let (a, b) = input.split_at(cut);
        for part in [a, b] {
            let mut part = part.to_vec();
            let written = decoder.decode(&mut part)?;
            output.extend_from_slice(&part[..written]);
        }
        decoder.finish()?;
        Ok(output)
    }

    #[test]
    fn line_ends_are_skipped_and_malformed_padding_is_refused() {
        assert_eq!(decode(b"QU\r\nI=\n", 3), Ok(b"AB".to_vec()));
        for bad in ["Q", "QQ", "QQ=", "Q===", "=", "QQ==QQ==", "QQ=Q", "QUJD=", "QQ-_", "QQ=="] {
            let expected = if bad == "QQ==" { Ok(b"A".to_vec()) } else { Err(Malformed) };
            for cut in 0..=bad.len() {
                assert_eq!(decode(bad.as_bytes(), cut), expected, "{bad} cut at {cut}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_cut_decodes_what_the_base64_crate_encoded(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let encoded = BASE64_STANDARD.encode(&bytes);
            for cut in 0..=encoded.len() {
                prop_assert_eq!(decode(encoded.as_bytes(), cut), Ok(bytes.clone()));
            }
        }

        #[test]
        fn verdicts_agree_with_the_base64_crate(text in "[A-Ca=]{0,12}") {
            use base64::{alphabet, engine::{GeneralPurpose, GeneralPurposeConfig}};
            // As Go: spare bits are not looked at.
            let engine = GeneralPurpose::new(&alphabet::STANDARD,
                GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));
            prop_assert_eq!(decode(text.as_bytes(), 0).ok(), engine.decode(&text).ok());
        }
    }
}
