//! Sizes as people write them: `4096`, `4KiB`, `8 GiB`, `1GB`.

use serde::de::{Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A number of bytes, never 0. Reads what `Display` writes; in TOML and JSON it may also be a plain number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Bytes(pub u64);

/// Units by what people write, in lower case. A single letter is binary, as in fio and dd.
const UNITS: [(&str, u64); 19] = [
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1_000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("tib", 1 << 40),
    ("tb", 1_000_000_000_000),
    ("p", 1 << 50),
    ("pib", 1 << 50),
    ("pb", 1_000_000_000_000_000),
    ("byte", 1),
    ("bytes", 1),
];

/// Why a text is no size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BadSize {
    /// No digits at the start.
    NoNumber,
    Negative,
    /// A fraction such as `1.5GiB`: say `1536MiB`.
    Fraction,
    UnknownUnit(String),
    Zero,
    /// 2^64 bytes or more.
    TooLarge,
}

impl fmt::Display for BadSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNumber => f.write_str("a size is a whole number and a unit, as in 4KiB or 8GiB"),
            Self::Negative => f.write_str("a size can't be negative"),
            Self::Fraction => {
                f.write_str("a size is a whole number: take a smaller unit, as in 1536MiB for 1.5GiB")
            }
            Self::UnknownUnit(unit) => write!(
                f,
                "`{unit}` is no unit of size: B, KiB, MiB, GiB, TiB, PiB (powers of 1024) or KB, MB, GB, TB, PB (of 1000)"
            ),
            Self::Zero => f.write_str("a size of 0 makes no sense here"),
            Self::TooLarge => f.write_str("a size must be less than 16EiB (2^64 bytes)"),
        }
    }
}

impl std::error::Error for BadSize {}

impl FromStr for Bytes {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let text = text.trim();
        if text.starts_with('-') {
            return Err(BadSize::Negative);
        }
        let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        if digits.is_empty() {
            return Err(BadSize::NoNumber);
        }
        if unit.starts_with(['.', ',']) {
            return Err(BadSize::Fraction);
        }
        let unit = unit.trim();
        let lower = unit.to_ascii_lowercase();
        let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == lower) else {
            return Err(BadSize::UnknownUnit(unit.to_owned()));
        };
        let number: u64 = digits.parse().map_err(|_| BadSize::TooLarge)?;
        match number.checked_mul(*factor) {
            None => Err(BadSize::TooLarge),
            Some(0) => Err(BadSize::Zero),
            Some(bytes) => Ok(Self(bytes)),
        }
    }
}

impl fmt::Display for Bytes {
    /// Exact: the largest binary unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const BINARY: [&str; 6] = ["", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let unit =
            if self.0 == 0 { 0 } else { (self.0.trailing_zeros() as usize / 10).min(BINARY.len() - 1) };
        write!(f, "{}{}", self.0 >> (10 * unit), BINARY[unit])
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Size;
        impl Visitor<'_> for Size {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"512KiB\" or a number of bytes")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Bytes, E> {
                if number == 0 { Err(E::custom(BadSize::Zero)) } else { Ok(Bytes(number)) }
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Bytes, E> {
                u64::try_from(number)
                    .map_err(|_| E::custom(BadSize::Negative))
                    .and_then(|n| self.visit_u64(n))
            }
        }
        deserializer.deserialize_any(Size)
    }
}

/// Bytes a second, or `0` for not at all.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rate(pub u64);

impl FromStr for Rate {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        match text.parse::<Bytes>() {
            Ok(bytes) => Ok(Self(bytes.0)),
            Err(BadSize::Zero) => Ok(Self(0)),
            Err(other) => Err(other),
        }
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Bytes(self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Self(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_sizes_as_people_write_them() {
        for (text, bytes) in [
            ("1", 1),
            ("4096", 4096),
            ("4KiB", 4096),
            ("4k", 4096),
            (" 8 GiB ", 8 << 30),
            ("1GB", 1_000_000_000),
            ("3tib", 3 << 40),
            ("16383PiB", 16383 << 50),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_told_apart() {
        for (text, why) in [
            ("", BadSize::NoNumber),
            ("GiB", BadSize::NoNumber),
            ("+5", BadSize::NoNumber),
            ("-4KiB", BadSize::Negative),
            ("0", BadSize::Zero),
            ("0GiB", BadSize::Zero),
            ("1.5GiB", BadSize::Fraction),
            ("4 apples", BadSize::UnknownUnit("apples".into())),
            ("0x1000", BadSize::UnknownUnit("x1000".into())),
            ("16384PiB", BadSize::TooLarge),
            ("99999999999999999999", BadSize::TooLarge),
        ] {
            assert_eq!(text.parse::<Bytes>(), Err(why), "{text}");
        }
    }

    #[test]
    fn files_may_say_it_either_way() {
        let read = |json: &str| serde_json::from_str::<Bytes>(json).map_err(|error| error.to_string());
        assert_eq!(read("\"64KiB\""), Ok(Bytes(65536)));
        assert_eq!(read("65536"), Ok(Bytes(65536)));
        assert!(
            read("-1").unwrap_err().contains("negative")
                && read("0").unwrap_err().contains("0 makes no sense")
        );
        assert!(read("true").unwrap_err().contains("512KiB"));
        assert_eq!(serde_json::to_string(&Bytes(1536 << 20)).unwrap(), "\"1536MiB\"");
    }

    #[test]
    fn a_rate_may_be_nothing() {
        for (text, rate) in [("0", 0), ("0MiB", 0), ("32MiB", 32 << 20)] {
            assert_eq!(text.parse(), Ok(Rate(rate)));
            let json = serde_json::to_string(&Rate(rate)).unwrap();
            assert_eq!(serde_json::from_str::<Rate>(&json).unwrap(), Rate(rate), "{json}");
        }
        assert_eq!(serde_json::from_str::<Rate>("0").unwrap(), Rate(0));
        assert!("-1".parse::<Rate>().is_err() && serde_json::from_str::<Rate>("\"fast\"").is_err());
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(bytes in 1..=u64::MAX) {
            prop_assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
        }

        #[test]
        fn any_text_is_a_size_or_an_error(text in ".*") {
            let _outcome = text.parse::<Bytes>();
        }
    }
}
