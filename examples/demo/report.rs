//! What is printed: one block for each step, that reads in a terminal and in a log.

use std::{
    fmt::Display,
    io::{self, Write as _},
    time::{Duration, Instant},
};

/// Writes the steps to standard output. The words are the same with colours and without.
pub struct Report {
    silent: bool,
    colour: bool,
    steps: usize,
    number: usize,
    begun: Instant,
    step_begun: Instant,
}

impl Report {
    pub fn new(colour: bool, steps: usize) -> Self {
        let now = Instant::now();
        Self { silent: false, colour, steps, number: 0, begun: now, step_begun: now }
    }

    /// Says nothing: for what is repeated many times.
    pub fn silent() -> Self {
        Self { silent: true, ..Self::new(false, 0) }
    }

    /// A new step: what it does and what is expected of it.
    pub fn step(&mut self, what: &str, expected: &str) {
        self.number += 1;
        self.step_begun = Instant::now();
        let number = format!("[{:>2}/{}]", self.number, self.steps);
        self.line("");
        self.line(&format!("{} {}", self.paint("1", &number), self.paint("1", what)));
        self.item("expect", expected);
    }

    /// A command, as one would type it in the checkout.
    pub fn command(&self, command: &str) {
        self.line(&format!("        {}", self.paint("36", &format!("$ {command}"))));
    }

    /// What a command printed.
    pub fn output(&self, text: &str) {
        for line in text.lines() {
            self.line(&format!("        | {line}"));
        }
    }

    /// Something on the way.
    pub fn note(&self, text: &str) {
        self.line(&format!("          {text}"));
    }

    /// The step ended as expected.
    pub fn passed(&self, saw: &str) {
        self.item("saw", saw);
        let took = seconds(self.step_begun.elapsed());
        self.line(&format!("        {}      after {took}", self.paint("32", "ok")));
    }

    /// The step did not.
    pub fn failed(&self, why: &dyn Display) {
        let took = seconds(self.step_begun.elapsed());
        self.line(&format!("        {}  after {took}", self.paint("31", "FAILED")));
        self.item("reason", &why.to_string());
    }

    /// The end, if every step passed.
    pub fn summary(&self) {
        let took = seconds(self.begun.elapsed());
        let text = format!("All {} steps went as expected, in {took}.", self.number);
        self.line("");
        self.line(&self.paint("1;32", &text));
    }

    pub fn paragraph(&self, text: &str) {
        self.line("");
        self.line(text);
    }

    fn item(&self, name: &str, text: &str) {
        let mut name = name;
        for line in text.lines() {
            self.line(&format!("        {name:7} {line}"));
            name = "";
        }
    }

    /// A reader who has had enough (`| head`) is no reason to stop: the exit code still counts.
    fn line(&self, text: &str) {
        if self.silent {
            return;
        }
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush());
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
