//! One-time codes by time: RFC 6238, as authenticator apps make them.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use zeroize::Zeroizing;

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// A secret's bytes: RFC 4226 asks for 16, some sites give 10.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 5..=256;

/// Why a text makes no one-time codes. Holds nothing of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TotpError {
    /// The secret is none.
    #[error("a TOTP secret is base32 of 5..256 bytes, or an otpauth://totp/ address with one")]
    Secret,
    /// A parameter of the address is not supported.
    #[error("the otpauth address asks for what is not supported: {0}")]
    Parameter(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
}

/// What makes codes.
#[derive(Clone)]
pub struct Totp {
    secret: Zeroizing<Vec<u8>>,
    algorithm: Algorithm,
    digits: u32,
    period: u64,
}

/// Shows the parameters, never the secret.
impl fmt::Debug for Totp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { algorithm, digits, period, .. } = self;
        f.debug_struct("Totp")
            .field("algorithm", algorithm)
            .field("digits", digits)
            .field("period", period)
            .finish_non_exhaustive()
    }
}

impl Totp {
    /// Reads a secret in base32 (spaces, hyphens, case and padding do not matter), or an `otpauth://totp/` address.
    ///
    /// # Errors
    /// [`TotpError`].
    pub fn parse(text: &str) -> Result<Self, TotpError> {
        let plain = |secret| Self { secret, algorithm: Algorithm::Sha1, digits: 6, period: 30 };
        let text = text.trim();
        let Some(scheme) = text.get(..10) else { return base32(text).map(plain) };
        if !scheme.eq_ignore_ascii_case("otpauth://") {
            return base32(text).map(plain);
        }
        let address = text[10..].strip_prefix("totp/").ok_or(TotpError::Parameter("only the type totp is"))?;
        let (_, query) = address.split_once('?').ok_or(TotpError::Secret)?;
        let mut totp = plain(Zeroizing::new(Vec::new()));
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                "secret" => totp.secret = base32(value)?,
                "algorithm" => {
                    totp.algorithm = match value.to_ascii_uppercase().as_str() {
                        "SHA1" => Algorithm::Sha1,
                        "SHA256" => Algorithm::Sha256,
                        "SHA512" => Algorithm::Sha512,
                        _ => return Err(TotpError::Parameter("algorithm must be SHA1, SHA256 or SHA512")),
                    }
                }
                "digits" => {
                    let digits = value.parse().ok().filter(|digits| (6..=8).contains(digits));
                    totp.digits = digits.ok_or(TotpError::Parameter("digits must be 6..8"))?;
                }
                "period" => {
                    let period = value.parse().ok().filter(|period| (10..=300).contains(period));
                    totp.period = period.ok_or(TotpError::Parameter("period must be 10..300"))?;
                }
                // The issuer and the like are for people.
                _ => {}
            }
        }
        if totp.secret.is_empty() { Err(TotpError::Secret) } else { Ok(totp) }
    }

    /// The number of the period that a time is in: each has one code.
    #[must_use]
    pub const fn step(&self, unix_seconds: u64) -> u64 {
        unix_seconds / self.period
    }

    /// When a period begins, in seconds since 1970.
    #[must_use]
    pub const fn begin(&self, step: u64) -> u64 {
        step.saturating_mul(self.period)
    }

    /// The code of a period.
    #[must_use]
    pub fn code(&self, step: u64) -> Zeroizing<String> {
        let digest = match self.algorithm {
            Algorithm::Sha1 => digest::<Hmac<Sha1>>(&self.secret, step),
            Algorithm::Sha256 => digest::<Hmac<Sha256>>(&self.secret, step),
            Algorithm::Sha512 => digest::<Hmac<Sha512>>(&self.secret, step),
        };
        // RFC 4226, 5.3: four bytes from where the last half byte points to.
        let at = usize::from(digest.last().copied().unwrap_or(0) & 0xf);
        let number = digest[at..at + 4].iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte)) & 0x7fff_ffff;
        let width = self.digits as usize;
        Zeroizing::new(format!("{:0width$}", number % 10u32.pow(self.digits)))
    }
}

fn digest<M: Mac + KeyInit>(secret: &[u8], step: u64) -> Zeroizing<Vec<u8>> {
    // HMAC takes a key of any length.
    let Ok(mut mac) = <M as KeyInit>::new_from_slice(secret) else { return Zeroizing::new(vec![0; 20]) };
    mac.update(&step.to_be_bytes());
    Zeroizing::new(mac.finalize().into_bytes().to_vec())
}

/// RFC 4648, lenient as authenticator apps are.
fn base32(text: &str) -> Result<Zeroizing<Vec<u8>>, TotpError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() * 5 / 8));
    let (mut buffer, mut bits) = (0u32, 0);
    for character in text.bytes().filter(|byte| !matches!(byte, b' ' | b'-')) {
        if character == b'=' {
            continue;
        }
        let digit = BASE32.iter().position(|known| *known == character.to_ascii_uppercase());
        buffer = buffer << 5 | digit.ok_or(TotpError::Secret)? as u32;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((buffer >> bits) as u8);
            buffer &= (1 << bits) - 1;
        }
    }
    if SECRET_BYTES.contains(&bytes.len()) { Ok(bytes) } else { Err(TotpError::Secret) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totp(algorithm: Algorithm, secret: &[u8], digits: u32) -> Totp {
        Totp { secret: Zeroizing::new(secret.to_vec()), algorithm, digits, period: 30 }
    }

    /// RFC 6238, appendix B, with the seeds of its errata.
    #[test]
    fn the_vectors_of_rfc_6238_hold() {
        let seed: Vec<u8> = b"1234567890".iter().copied().cycle().take(64).collect();
        for (time, sha1, sha256, sha512) in [
            (59, "94287082", "46119246", "90693936"),
            (1_111_111_109, "07081804", "68084774", "25091201"),
            (1_111_111_111, "14050471", "67062674", "99943326"),
            (1_234_567_890, "89005924", "91819424", "93441116"),
            (2_000_000_000, "69279037", "90698825", "38618901"),
            (20_000_000_000, "65353130", "77737706", "47863826"),
        ] {
            for (algorithm, bytes, code) in
                [(Algorithm::Sha1, 20, sha1), (Algorithm::Sha256, 32, sha256), (Algorithm::Sha512, 64, sha512)]
            {
                let totp = totp(algorithm, &seed[..bytes], 8);
                assert_eq!(*totp.code(totp.step(time)), code, "{algorithm:?} at {time}");
            }
        }
    }

    #[test]
    fn secrets_are_read_as_sites_show_them() {
        // "12345678901234567890"
        let expected = "755224";
        for text in [
            "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ",
            "gezd gnbv gy3t qojq gezd gnbv gy3t qojq",
            "GEZDGNBV-GY3TQOJQ-GEZDGNBV-GY3TQOJQ====",
            "otpauth://totp/Brightwater:ada?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Brightwater",
            "OTPAUTH://totp/x?digits=6&period=30&algorithm=SHA1&secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ",
        ] {
            assert_eq!(*Totp::parse(text).unwrap().code(0), expected, "{text}");
        }
        let other =
            Totp::parse("otpauth://totp/x?secret=GEZDGNBVGY3TQOJQ&digits=8&period=60&algorithm=SHA256").unwrap();
        assert_eq!((other.digits, other.period, other.algorithm), (8, 60, Algorithm::Sha256));
        assert_eq!((other.step(119), other.begin(2)), (1, 120));
    }

    #[test]
    fn what_is_no_secret_is_refused_and_none_is_shown() {
        for text in ["", "AAA", "0189", "é", "otpauth://totp/x", "otpauth://totp/x?issuer=y", &"A".repeat(500)] {
            assert_eq!(Totp::parse(text).unwrap_err(), TotpError::Secret, "{text}");
        }
        for text in ["otpauth://hotp/x?secret=GEZDGNBVGY3TQOJQ", "otpauth://totp/x?secret=GEZDGNBVGY3TQOJQ&digits=9"] {
            assert!(matches!(Totp::parse(text), Err(TotpError::Parameter(_))), "{text}");
        }
        let shown = format!("{:?}", Totp::parse("GEZDGNBVGY3TQOJQ").unwrap());
        assert!(!shown.contains("49") && shown.contains("30"), "{shown}");
    }
}
