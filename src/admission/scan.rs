//! A cursor over JSON. It reads what it is asked for and skips the rest: most of a review are
//! `managedFields` and annotations, which decide nothing.
//!
//! It reads what serde_json reads, and in the same sense. Whatever else there is, it gives up on with
//! `None`: what is wrong, serde_json says ([`super::review`]).
//!
//! serde_json alone does all of this, with half as many instructions more for an update and twice as many
//! for a large body (docs/benchmarks.md); that both read the same is a property of [`super::review`]'s tests
//! and of the fuzz target `reviews`.

use std::borrow::Cow;

pub(super) struct Scan<'a> {
    text: &'a str,
    at: usize,
    /// How each list and object ends that is being skipped.
    open: Vec<u8>,
    /// Lists and objects that were skipped. Most of an old object stands in the new one as well.
    skipped: Vec<&'a str>,
}

/// From so many bytes on it is remembered what was skipped.
const LONG: usize = 128;
/// So much is remembered. Each of it is compared with all that is skipped later.
const MEMORY: usize = 16;

impl<'a> Scan<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0, open: Vec::new(), skipped: Vec::new() }
    }

    /// The next byte that is no white space, which is not passed.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match *self.text.as_bytes().get(self.at)? {
                b' ' | b'\n' | b'\t' | b'\r' => self.at += 1,
                byte => return Some(byte),
            }
        }
    }

    fn pass(&mut self, wanted: u8) -> Option<()> {
        (self.peek()? == wanted).then(|| self.at += 1)
    }

    fn pass_word(&mut self, word: &str) -> Option<()> {
        self.text.as_bytes()[self.at..].starts_with(word.as_bytes()).then(|| self.at += word.len())
    }

    /// Past null, if that is next.
    pub(super) fn is_null(&mut self) -> Option<bool> {
        Some(self.peek()? == b'n' && self.pass_word("null").is_some())
    }

    /// Whether nothing is left.
    pub(super) fn is_at_end(&mut self) -> bool {
        self.peek().is_none()
    }

    /// An object. `field` is told each key, and reads the value.
    pub(super) fn object(
        &mut self,
        mut field: impl FnMut(&mut Self, &str) -> Option<()>,
    ) -> Option<()> {
        self.pass(b'{')?;
        if self.pass(b'}').is_some() {
            return Some(());
        }
        loop {
            let key = self.text()?;
            self.pass(b':')?;
            field(self, &key)?;
            if self.pass(b',').is_none() {
                return self.pass(b'}');
            }
        }
    }

    /// A list. `item` reads each of its values.
    pub(super) fn list(&mut self, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.pass(b'[')?;
        if self.pass(b']').is_some() {
            return Some(());
        }
        loop {
            item(self)?;
            if self.pass(b',').is_none() {
                return self.pass(b']');
            }
        }
    }

    /// A text, borrowed if it has no escapes.
    pub(super) fn text(&mut self) -> Option<Cow<'a, str>> {
        self.peek()?;
        let begin = self.at;
        let has_escapes = self.pass_text()?;
        let quoted = &self.text[begin..self.at];
        if has_escapes {
            return serde_json::from_str(quoted).ok().map(Cow::Owned);
        }
        Some(Cow::Borrowed(&quoted[1..quoted.len() - 1]))
    }

    /// A value of whatever type, as it is written.
    pub(super) fn raw(&mut self) -> Option<&'a str> {
        self.peek()?;
        let begin = self.at;
        self.skip()?;
        Some(&self.text[begin..self.at])
    }

    /// Past a value of whatever type, however deep.
    pub(super) fn skip(&mut self) -> Option<()> {
        self.peek()?;
        let (begin, rest) = (self.at, &self.text[self.at..]);
        // A list or an object ends where the same bytes have ended before.
        if let Some(known) = self.skipped.iter().find(|known| rest.starts_with(**known)) {
            self.at += known.len();
            return Some(());
        }
        self.skip_value()?;
        let passed = &self.text[begin..self.at];
        if passed.len() >= LONG && passed.starts_with(['{', '[']) && self.skipped.len() < MEMORY {
            self.skipped.push(passed);
        }
        Some(())
    }

    fn skip_value(&mut self) -> Option<()> {
        self.open.clear();
        loop {
            match self.peek()? {
                b'"' => self.pass_text().map(drop)?,
                b'{' => {
                    self.at += 1;
                    if self.pass(b'}').is_none() {
                        self.open.push(b'}');
                        self.pass_key()?;
                        continue;
                    }
                }
                b'[' => {
                    self.at += 1;
                    if self.pass(b']').is_none() {
                        self.open.push(b']');
                        continue;
                    }
                }
                b't' => self.pass_word("true")?,
                b'f' => self.pass_word("false")?,
                b'n' => self.pass_word("null")?,
                _ => self.pass_number()?,
            }
            loop {
                let Some(&end) = self.open.last() else { return Some(()) };
                let next = self.peek()?;
                self.at += 1;
                if next == b',' {
                    if end == b'}' {
                        self.pass_key()?;
                    }
                    break;
                }
                if next != end {
                    return None;
                }
                self.open.pop();
            }
        }
    }

    fn pass_key(&mut self) -> Option<()> {
        self.peek()?;
        self.pass_text()?;
        self.pass(b':')
    }

    /// Past a text. Returns whether it has escapes.
    fn pass_text(&mut self) -> Option<bool> {
        let bytes = self.text.as_bytes();
        (bytes.get(self.at) == Some(&b'"')).then(|| self.at += 1)?;
        let mut has_escapes = false;
        loop {
            self.at += plain(&bytes[self.at..]);
            match bytes.get(self.at..)? {
                [b'"', ..] => {
                    self.at += 1;
                    return Some(has_escapes);
                }
                [b'\\', b'u', digits @ ..] => {
                    digits.get(..4)?.iter().all(u8::is_ascii_hexdigit).then_some(())?;
                    self.at += 6;
                }
                [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => self.at += 2,
                // A control character, or an escape of nothing.
                _ => return None,
            }
            has_escapes = true;
        }
    }

    fn pass_number(&mut self) -> Option<()> {
        let bytes = self.text.as_bytes();
        let next = |at: usize| bytes.get(at).copied().unwrap_or_default();
        let digits = |from: usize| {
            let count = bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            (count > 0).then_some(from + count)
        };
        let mut at = self.at + usize::from(next(self.at) == b'-');
        at = if next(at) == b'0' { at + 1 } else { digits(at)? };
        if next(at) == b'.' {
            at = digits(at + 1)?;
        }
        if matches!(next(at), b'e' | b'E') {
            at += 1;
            at = digits(at + usize::from(matches!(next(at), b'+' | b'-')))?;
        }
        self.at = at;
        Some(())
    }
}

/// How many bytes there are before the first that a text cannot just hold. Eight at a time: nearly
/// all bytes of a review are in texts.
fn plain(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGHEST_BITS: u64 = ONES << 7;
    let (words, rest) = bytes.as_chunks();
    for (i, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let below = |word: u64, bound: u8| word.wrapping_sub(ONES * u64::from(bound)) & !word;
        // With this bit turned, what lies below '!' are the control characters and '"'.
        let control_or_quote = below(word ^ (ONES * 2), b'!');
        let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
        // A borrow reaches only what stands behind a byte that was found.
        let found = (control_or_quote | backslash) & HIGHEST_BITS;
        if found != 0 {
            return i * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..b' ');
    words.len() * 8 + rest.iter().position(special).unwrap_or(rest.len())
}
