//! What a pod answers to a scrape, read as it arrives.
//!
//! Formats: Prometheus text 0.0.4 and OpenMetrics 1.0, as far as kube-state-metrics writes them:
//! no exemplars, a value after each series.

/// The longest line that is read: kube-state-metrics puts whole annotations into labels, and
/// Kubernetes allows 256 KiB of them, each byte of which may be escaped.
const MAX_LINE: usize = 1 << 20;

/// Why an answer is not what a scrape returns. It then counts as no answer at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A sample without a value, or with an open label set.
    #[error("line {line} is no sample")]
    NoSample {
        /// Counted from 1.
        line: u64,
    },
    /// A line that no scrape contains.
    #[error("line {line} is longer than {MAX_LINE} bytes")]
    LongLine {
        /// Counted from 1.
        line: u64,
    },
    /// The answer ends in the middle of a line, or without the mark that OpenMetrics demands.
    #[error("it is cut short after {lines} lines")]
    CutShort {
        /// Those that are complete.
        lines: u64,
    },
}

/// Reads an exposition in pieces of any size. Holds one line at most.
#[derive(Debug, Default)]
pub struct Exposition {
    /// The beginning of a line whose end has not arrived.
    rest: Vec<u8>,
    lines: u64,
    /// Whether OpenMetrics' last line was seen.
    marked: bool,
}

impl Exposition {
    /// Reads the next piece. `each` gets every sample in it.
    pub fn feed(
        &mut self,
        piece: &[u8],
        each: &mut impl FnMut(Sample<'_>),
    ) -> Result<(), Malformed> {
        let mut piece = piece;
        if !self.rest.is_empty() {
            let Some(end) = piece.iter().position(|&byte| byte == b'\n') else {
                self.rest.extend_from_slice(piece);
                return self.check_rest();
            };
            self.rest.extend_from_slice(&piece[..end]);
            let mut line = std::mem::take(&mut self.rest);
            self.line(&line, each)?;
            line.clear();
            self.rest = line;
            piece = &piece[end + 1..];
        }
        for line in piece.split_inclusive(|&byte| byte == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(line) => self.line(line, each)?,
                None => self.rest.extend_from_slice(line),
            }
        }
        self.check_rest()
    }

    /// To be called when the answer is over. `needs_mark` is whether it said that it is
    /// OpenMetrics, which ends with a mark.
    pub fn end(self, needs_mark: bool) -> Result<(), Malformed> {
        if self.rest.is_empty() && (self.marked || !needs_mark) {
            Ok(())
        } else {
            Err(Malformed::CutShort { lines: self.lines })
        }
    }

    fn check_rest(&self) -> Result<(), Malformed> {
        if self.rest.len() > MAX_LINE {
            return Err(Malformed::LongLine { line: self.lines + 1 });
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8], each: &mut impl FnMut(Sample<'_>)) -> Result<(), Malformed> {
        self.lines += 1;
        match line {
            b"# EOF" => self.marked = true,
            [] | [b'#', ..] => {}
            _ => each(Sample::parse(line).ok_or(Malformed::NoSample { line: self.lines })?),
        }
        Ok(())
    }
}

/// One line of an exposition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample<'a> {
    /// Name and labels, as they are written.
    pub series: &'a [u8],
    /// The value, and the time if there is one.
    pub value: &'a [u8],
}

impl<'a> Sample<'a> {
    /// A label value may hold any character, so the label set ends with the last brace; after it
    /// come only numbers.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let name = line.iter().position(|&byte| byte == b'{' || byte == b' ')?;
        let end = match line[name] {
            b'{' => line.iter().rposition(|&byte| byte == b'}')? + 1,
            _ => name,
        };
        let value = line[end..].strip_prefix(b" ")?;
        let valued = value.first().is_some_and(|&byte| byte != b' ');
        (end > 0 && valued).then_some(Self { series: &line[..end], value })
    }

    /// The value of label `name`, if the series is of this family and the value has no character
    /// that is escaped.
    #[must_use]
    pub fn label(&self, family: &str, name: &str) -> Option<&'a str> {
        let mut rest = self.series.strip_prefix(family.as_bytes())?.strip_prefix(b"{")?;
        loop {
            let equals = rest.iter().position(|&byte| byte == b'=')?;
            let (key, value) = (&rest[..equals], rest[equals + 1..].strip_prefix(b"\"")?);
            let mut escaped = false;
            let end = value.iter().position(|&byte| {
                let ends = byte == b'"' && !escaped;
                escaped = byte == b'\\' && !escaped;
                ends
            })?;
            if key == name.as_bytes() {
                return std::str::from_utf8(&value[..end]).ok().filter(|v| !v.contains('\\'));
            }
            rest = value[end + 1..].strip_prefix(b",")?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(pieces: &[&[u8]], needs_mark: bool) -> Result<Vec<String>, Malformed> {
        let (mut exposition, mut found) = (Exposition::default(), Vec::new());
        for piece in pieces {
            exposition.feed(piece, &mut |sample: Sample<'_>| {
                found.push(String::from_utf8_lossy(sample.series).into_owned());
            })?;
        }
        exposition.end(needs_mark).map(|()| found)
    }

    const ANSWER: &str = "# HELP kube_node_info x\n# TYPE kube_node_info info\n\
        kube_node_info{node=\"a b\",os=\"} 1\\\"\"} 1\nup 1 1700000000\n\n\
        kube_pod_labels{label_x=\"a,b={}\"} 1e+09\n# EOF\n";

    #[test]
    fn v1_a_series_is_what_stands_before_the_value_whatever_its_labels_hold() {
        let series = [
            r#"kube_node_info{node="a b",os="} 1\""}"#,
            "up",
            r#"kube_pod_labels{label_x="a,b={}"}"#,
        ];
        assert_eq!(read(&[ANSWER.as_bytes()], true), Ok(series.map(String::from).to_vec()));
    }

    #[test]
    fn v1_an_answer_that_is_cut_short_anywhere_is_none() {
        for end in 0..ANSWER.len() - 1 {
            let cut = read(&[&ANSWER.as_bytes()[..end]], true);
            assert!(matches!(cut, Err(Malformed::CutShort { .. })), "{end}: {cut:?}");
        }
        assert_eq!(read(&[b"up 1\nup 2"], false), Err(Malformed::CutShort { lines: 1 }));
    }

    #[test]
    fn v1_what_is_no_exposition_is_none() {
        for line in ["up\n", "up{a=\"b\" 1\n", " 1\n", "up{} \n", "<html>\n"] {
            assert_eq!(
                read(&[line.as_bytes()], false),
                Err(Malformed::NoSample { line: 1 }),
                "{line}"
            );
        }
        let long = vec![b'a'; MAX_LINE + 2];
        assert_eq!(read(&[b"up 1\n", &long], false), Err(Malformed::LongLine { line: 2 }));
    }

    #[test]
    fn v3_a_label_is_found_by_its_whole_name_and_family() {
        let line = br#"kube_node_info{node_x="1",os="a\"b,node=\"no",node="n1"} 1"#;
        let sample = Sample::parse(line).unwrap();
        assert_eq!(sample.value, b"1");
        assert_eq!(sample.label("kube_node_info", "node"), Some("n1"));
        assert_eq!(sample.label("kube_node", "node"), None);
        assert_eq!(sample.label("kube_node_info", "os"), None, "it is escaped");
        assert_eq!(sample.label("kube_node_info", "absent"), None);
    }

    proptest! {
        #[test]
        fn v1_pieces_of_any_size_read_as_the_whole(
            sizes in prop::collection::vec(1_usize..40, 1..40),
        ) {
            let (mut rest, mut pieces) = (ANSWER.as_bytes(), Vec::new());
            for size in sizes.into_iter().cycle() {
                if rest.is_empty() { break }
                let (piece, later) = rest.split_at(size.min(rest.len()));
                pieces.push(piece);
                rest = later;
            }
            prop_assert_eq!(read(&pieces, true), read(&[ANSWER.as_bytes()], true));
        }

        #[test]
        fn v1_no_bytes_make_it_panic(pieces in prop::collection::vec(any::<Vec<u8>>(), 0..8)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(|p| &**p).collect();
            let _ = read(&pieces, true);
            for piece in pieces {
                let _ = Sample { series: piece, value: b"" }.label("", "a");
            }
        }
    }
}
