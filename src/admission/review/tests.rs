//! The cursor and serde_json read the same.

use super::*;
use proptest::prelude::*;

const BODY: &str = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"7","kind":{"group":"g","version":"v","kind":"k"},"resource":{"group":"g","version":"v","resource":"r"},"name":"x","operation":"UPDATE","userInfo":{"username":"j\u0061ne","groups":["a","b"],"extra":{"k":["v"]}},"object":{"apiVersion":"v","kind":"k","metadata":{"name":"x","uid":"u","deletionTimestamp":null,"annotations":{"a":"\"\ud83d\ude00\\ and so on, for long"},"managedFields":[{"f:a":{}},[1,-2.5e+3,0],true,false,null]},"spec":{"a":[{}]},"status":{}},"oldObject":null,"dryRun":false}}"#;

/// What a fault puts in place of something else.
const PIECES: [&str; 24] = [
    "",
    " ",
    "\n",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\u",
    "0",
    "-",
    "1e",
    ".",
    "null",
    "true",
    "\u{1}",
    "é",
    "{}",
    "[]",
    "\"\"",
    "\"uid\":\"8\",",
];

fn assert_read_alike(body: &str) {
    if let Some(envelope) = Envelope::scan(body) {
        let by_serde = parsed_by_serde(body).expect(body);
        assert_eq!(format!("{envelope:?}"), format!("{by_serde:?}"), "{body}");
    }
}

#[test]
fn w6_what_the_cursor_reads_is_what_serde_reads() {
    assert!(Envelope::scan(BODY).is_some(), "it is the rule, and not an exception");
    assert_read_alike(BODY);
    for at in (0..BODY.len()).filter(|at| BODY.is_char_boundary(*at)) {
        assert!(Envelope::scan(&BODY[..at]).is_none());
        for piece in PIECES {
            assert_read_alike(&format!("{}{piece}{}", &BODY[..at], &BODY[at..]));
            assert_read_alike(&format!("{}{piece}{}", &BODY[..at], &BODY[at + 1..]));
        }
    }
}

proptest! {
    #[test]
    fn w6_what_the_cursor_skips_serde_takes(text in "[\\[\\]{}:,\"a0-2.eE+\\\\/u \n-]{0,16}|\\PC{0,8}") {
        let mut scan = Scan::new(&text);
        if scan.skip().is_some() && scan.is_at_end() {
            prop_assert!(serde_json::from_str::<&RawValue>(&text).is_ok());
        }
    }
}
