//! NUMERIC in PostgreSQL's binary form ↔ base-10 text, exactly.
//!
//! The form is groups of four decimal digits with the weight of the first one, a sign, and how many digits after the
//! point are shown.

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NOT_A_NUMBER: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;
/// The most digits before the point.
const WHOLE_DIGITS_MAX: usize = 131_072;
/// The most digits after it.
const FRACTION_DIGITS_MAX: usize = 16_383;
/// Digits in a group.
const GROUP: usize = 4;

/// A number as text, or the word for one that base 10 can't write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Text {
    Number(String),
    Word(&'static str),
}

/// Reads the binary form; `None` if it is not one.
pub(super) fn decode(bytes: &[u8]) -> Option<Text> {
    let mut words = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let (count, weight, sign, scale) = (words.next()?, words.next()?.cast_signed(), words.next()?, words.next()?);
    match sign {
        NOT_A_NUMBER => return Some(Text::Word("NaN")),
        INFINITY => return Some(Text::Word("Infinity")),
        NEGATIVE_INFINITY => return Some(Text::Word("-Infinity")),
        _ => {}
    }
    let groups: Vec<u16> = words.collect();
    if groups.len() != usize::from(count) {
        return None;
    }
    let group = |place: i32| {
        let index = usize::try_from(i32::from(weight) - place).ok();
        index.and_then(|index| groups.get(index)).copied().unwrap_or(0)
    };
    let mut text = String::new();
    (0..=i32::from(weight)).rev().for_each(|place| text.push_str(&format!("{:04}", group(place))));
    let whole = text.trim_start_matches('0');
    let mut text = format!("{}{}", if sign == NEGATIVE { "-" } else { "" }, if whole.is_empty() { "0" } else { whole });
    if scale > 0 {
        text.push('.');
        let end = text.len() + usize::from(scale);
        (1..=usize::from(scale).div_ceil(GROUP) as i32)
            .for_each(|place| text.push_str(&format!("{:04}", group(-place))));
        text.truncate(end);
    }
    Some(Text::Number(text))
}

/// Writes the binary form; `None` if the text is not a plain base-10 number or too long.
pub(super) fn encode(text: &str) -> Option<Vec<u8>> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !plain(whole) || !plain(fraction) {
        return None;
    }
    let whole = whole.trim_start_matches('0');
    if whole.len() > WHOLE_DIGITS_MAX || fraction.len() > FRACTION_DIGITS_MAX {
        return None;
    }
    let (groups, weight) = groups(whole, fraction);
    let sign = if negative && !groups.is_empty() { NEGATIVE } else { POSITIVE };
    let head = [groups.len() as u16, weight.cast_unsigned(), sign, fraction.len() as u16];
    Some(head.iter().chain(&groups).flat_map(|word| word.to_be_bytes()).collect())
}

/// The groups without zeros at either end, and the weight of the first.
fn groups(whole: &str, fraction: &str) -> (Vec<u16>, i16) {
    let lead = whole.len().next_multiple_of(GROUP) - whole.len();
    let trail = fraction.len().next_multiple_of(GROUP) - fraction.len();
    let digits = [&"000"[..lead], whole, fraction, &"000"[..trail]].concat();
    let value = |group: &[u8]| group.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    let groups: Vec<u16> = digits.as_bytes().chunks(GROUP).map(value).collect();
    let Some(first) = groups.iter().position(|group| *group != 0) else { return (Vec::new(), 0) };
    let last = groups.iter().rposition(|group| *group != 0).unwrap_or(first);
    let weight = (whole.len().div_ceil(GROUP) as i32 - 1 - first as i32) as i16;
    (groups[first..=last].to_vec(), weight)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_read_back_as_they_were_written() {
        for (written, read) in [
            ("0", "0"),
            ("-0", "0"),
            ("0.00", "0.00"),
            ("+1.50", "1.50"),
            (".5", "0.5"),
            ("7.", "7"),
            ("-0.0001", "-0.0001"),
            ("0.00000001", "0.00000001"),
            ("10000", "10000"),
            ("00100000000.10", "100000000.10"),
            (
                "123456789012345678901234567890.123456789012345678901234567890",
                "123456789012345678901234567890.123456789012345678901234567890",
            ),
        ] {
            let bytes = encode(written).expect(written);
            assert_eq!(decode(&bytes), Some(Text::Number(read.to_owned())), "{written}");
        }
    }

    #[test]
    fn the_server_s_form_is_the_one_in_its_source() {
        assert_eq!(encode("12345.678").as_deref(), Some(&[0, 3, 0, 1, 0, 0, 0, 3, 0, 1, 9, 41, 26, 124][..]));
        assert_eq!(encode("-0.0001").as_deref(), Some(&[0, 1, 255, 255, 64, 0, 0, 4, 0, 1][..]));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", "-", ".", "1e5", "1,5", " 1", "1 ", "--1", "0x10", "NaN", "١"] {
            assert_eq!(encode(text), None, "{text}");
        }
        assert_eq!(encode(&"9".repeat(WHOLE_DIGITS_MAX + 1)), None);
        assert_eq!(decode(&[0, 1, 0, 0, 0, 0, 0, 0]), None, "a group is missing");
        assert_eq!(decode(&[0, 0, 0, 0, 0xC0, 0, 0, 0]), Some(Text::Word("NaN")));
    }

    proptest! {
        #[test]
        fn any_number_survives(sign in "-?", whole in "[1-9][0-9]{0,60}|0", fraction in "[0-9]{0,60}") {
            let zero = whole == "0" && fraction.bytes().all(|digit| digit == b'0');
            let sign = if zero { "" } else { &sign };
            let text = format!("{sign}{whole}{}{fraction}", if fraction.is_empty() { "" } else { "." });
            prop_assert_eq!(decode(&encode(&text).expect("a number")), Some(Text::Number(text)));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _: Option<Text> = decode(&bytes);
        }
    }
}
