//! Where the members of a JSON object stand in its text, so that values are stored byte for byte as they came.

use std::ops::Range;

use serde::de::IgnoredAny;

/// A member of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Its name, without escapes.
    pub(super) name: String,
    /// Where its value stands in the text.
    pub(super) value: Range<usize>,
}

/// Checks that a text is one JSON value.
pub(super) fn check(text: &str) -> Result<(), String> {
    serde_json::from_str::<IgnoredAny>(text).map(drop).map_err(|error| column(&error))
}

/// The members of an object in order, or `None` for another kind of value. The text must have passed [`check`].
pub(super) fn members(text: &str) -> Option<Result<Vec<Member>, String>> {
    let mut scan = Scan { bytes: text.as_bytes(), at: 0 };
    scan.space();
    scan.take(b'{').then(|| scan.members(text))
}

/// Reads a string's text, without its quotes and escapes.
pub(super) fn string(text: &str) -> Option<String> {
    serde_json::from_str(text).ok()
}

fn column(error: &serde_json::Error) -> String {
    let text = error.to_string();
    // It counts lines inside of one line: of use is only the column.
    match text.split_once(" at line ") {
        Some((what, _)) => format!("{what} at column {}", error.column()),
        None => text,
    }
}

/// Walks over a text that is known to be JSON.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn members(&mut self, text: &str) -> Result<Vec<Member>, String> {
        let mut members = Vec::new();
        loop {
            self.space();
            if self.take(b'}') || self.at >= self.bytes.len() {
                return Ok(members);
            }
            if self.take(b',') {
                continue;
            }
            let name = self.value();
            let name = serde_json::from_str(&text[name]).map_err(|error| column(&error))?;
            self.space();
            self.take(b':');
            self.space();
            members.push(Member { name, value: self.value() });
        }
    }

    /// Walks over one value and says where it stood.
    fn value(&mut self) -> Range<usize> {
        let start = self.at;
        let mut depth = 0_usize;
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b'"' => self.string(),
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                _ if depth > 0 => {
                    self.at += 1;
                    continue;
                }
                _ => self.word(),
            }
            if depth == 0 {
                break;
            }
        }
        start..self.at
    }

    fn string(&mut self) {
        self.at += 1;
        while let Some(byte) = self.bytes.get(self.at) {
            self.at += 1;
            match byte {
                b'"' => break,
                b'\\' => self.at += 1,
                _ => {}
            }
        }
    }

    /// A number, `true`, `false` or `null`.
    fn word(&mut self) {
        let end = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b':') || byte.is_ascii_whitespace();
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        // At least one byte, so that every walk ends.
        self.at += rest.iter().position(end).unwrap_or(rest.len()).max(1);
    }

    fn space(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let there = self.bytes.get(self.at) == Some(&byte);
        self.at += usize::from(there);
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(text: &str) -> Vec<(String, &str)> {
        check(text).expect("the test's text is JSON");
        let members = members(text).expect("it is an object").expect("its names are text");
        members.into_iter().map(|member| (member.name, &text[member.value])).collect()
    }

    #[test]
    fn values_stand_where_they_came_with_every_digit() {
        let text = r#" { "id" : 12345678901234567890.10 ,"a\"}":"x\\\"}" , "o":{"id":[1,{"k":"]"}]}, "n":null,"e":{}, "l":[] ,"t":true} "#;
        let expected = [
            ("id", "12345678901234567890.10"),
            ("a\"}", r#""x\\\"}""#),
            ("o", r#"{"id":[1,{"k":"]"}]}"#),
            ("n", "null"),
            ("e", "{}"),
            ("l", "[]"),
            ("t", "true"),
        ];
        assert_eq!(spans(text), expected.map(|(name, value)| (name.to_owned(), value)));
        assert_eq!(spans("{}"), []);
        assert_eq!(spans(r#"{"\u0069d":1,"id":2}"#), [("id".to_owned(), "1"), ("id".to_owned(), "2")]);
    }

    #[test]
    fn the_values_that_serde_reads_are_the_values_that_stand_there() {
        let mut dice = fastrand::Rng::with_seed(7);
        for _ in 0..2000 {
            let object = object(&mut dice, 0);
            for text in [object.to_string(), serde_json::to_string_pretty(&object).unwrap()] {
                let found: serde_json::Map<String, serde_json::Value> = spans(&text)
                    .into_iter()
                    .map(|(name, value)| (name, serde_json::from_str(value).expect("a value stands there")))
                    .collect();
                assert_eq!(serde_json::Value::Object(found), object, "in {text}");
            }
        }
    }

    fn object(dice: &mut fastrand::Rng, depth: usize) -> serde_json::Value {
        let members = (0..dice.usize(0..4)).map(|_| (word(dice), value(dice, depth + 1)));
        serde_json::Value::Object(members.collect())
    }

    fn value(dice: &mut fastrand::Rng, depth: usize) -> serde_json::Value {
        match dice.u8(0..if depth < 4 { 7 } else { 5 }) {
            0 => serde_json::Value::Null,
            1 => dice.bool().into(),
            2 => dice.i64(..).into(),
            // Quarters, which a reader can't round.
            3 => (f64::from(dice.i32(..)) / 4.0).into(),
            4 => word(dice).into(),
            5 => (0..dice.usize(0..4)).map(|_| value(dice, depth + 1)).collect(),
            _ => object(dice, depth),
        }
    }

    fn word(dice: &mut fastrand::Rng) -> String {
        const LETTERS: [char; 12] = ['a', '"', '\\', '{', '}', '[', ']', ',', ':', ' ', '\n', 'é'];
        (0..dice.usize(0..6)).map(|_| LETTERS[dice.usize(..LETTERS.len())]).collect()
    }

    #[test]
    fn anything_but_an_object_has_no_members() {
        for text in ["[]", "1", "\"{}\"", "null"] {
            assert_eq!(members(text), None);
        }
    }

    #[test]
    fn what_is_no_json_is_named_by_its_column() {
        assert_eq!(check("{\"a\":}"), Err("expected value at column 6".to_owned()));
        assert!(check("{} {}").is_err());
        assert!(check("").is_err());
    }
}
