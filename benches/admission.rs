//! From the bytes of a review to those of its answer. Goal: 10 µs for an update of 4.5 kB, so that
//! the rules cost no more than TLS and HTTP around them. The bytes are those of the bench of the
//! whole server.
//!
//! CPU time as Linux counts it for this thread, so that a busy machine changes little; and the
//! number of instructions, as valgrind counts them, which it does not change at all.

#![allow(clippy::panic, reason = "a bench fails by panicking")]

#[path = "webhook/bodies.rs"]
#[allow(dead_code, unreachable_pub, reason = "a module of another bench, too")]
mod bodies;

use anyhow::{Context as _, Result, ensure};
use bodies::{Case, Cases, knowledge};
use ksm_scale_operator::{
    admission::{Answer, Decision, Knowledge, Review, parse},
    allowed::Allowed,
};
use std::{hint::black_box, process::Command, time::Duration};

/// Each sample is the mean over so long; the clock moves on every few milliseconds.
const SAMPLE: Duration = Duration::from_millis(200);
const SAMPLES: usize = 15;

/// Calls whose instructions are counted. What a process does besides is the same in both, and so
/// falls out of their difference.
const FEW: u64 = 50;
const MANY: u64 = 250;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let Cases { touch, update, create, denial, mutation, large, huge } = Cases::new()?;
    let cases = [touch, update, create, denial, mutation, large, huge];
    if let [name, calls] = &arguments[..] {
        let case = cases.iter().find(|case| case.name == name).context("no case of this name")?;
        return run(case, calls.parse()?);
    }
    println!("parse, decide and answer; CPU time per call, of {SAMPLES} samples");
    for case in &cases {
        measure(case)?;
    }
    println!("\ninstructions per call");
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("  not counted: there is no valgrind (Debian: apt-get install valgrind)");
        return Ok(());
    }
    for case in &cases {
        let each = (instructions(case, MANY) - instructions(case, FEW)) / (MANY - FEW);
        println!("  {:12} {:>9} bytes  {each:>9}", case.name, case.size());
    }
    Ok(())
}

/// Instructions of a process that answers the request so many times.
fn instructions(case: &Case, calls: u64) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().expect("this program"))
        .args([case.name, &calls.to_string()])
        .output()
        .expect("valgrind");
    let text = String::from_utf8_lossy(&output.stderr);
    let count =
        text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    count.unwrap_or_else(|| panic!("valgrind counted nothing: {text}"))
}

fn measure(case: &Case) -> Result<()> {
    let mut calls = 1;
    while taken(case, calls)? < SAMPLE {
        calls *= 2;
    }
    let samples = (0..SAMPLES).map(|_| Ok(taken(case, calls)? / calls));
    let mut samples = samples.collect::<Result<Vec<_>>>()?;
    samples.sort_unstable();
    let [fastest, median, slowest] = [0, SAMPLES / 2, SAMPLES - 1].map(|i| samples[i].as_nanos());
    println!(
        "  {:12} {:>9} bytes  median {median:>9} ns, fastest {fastest:>9} ns, slowest {slowest:>9} ns",
        case.name,
        case.size()
    );
    Ok(())
}

fn taken(case: &Case, calls: u32) -> Result<Duration> {
    let begun = cpu_time();
    run(case, calls)?;
    Ok(cpu_time().saturating_sub(begun))
}

/// Answers the request so many times. The answers are all the same, and the first is looked at.
fn run(case: &Case, calls: u32) -> Result<()> {
    const NUMBER: u64 = 7;
    let (knowledge, allowed, body) = (knowledge(), Allowed::default(), case.body(NUMBER));
    let first = answer(case, &body, &knowledge, &allowed);
    case.check(NUMBER, &first.body)?;
    for _ in 1..calls {
        let again = answer(case, black_box(&body), &knowledge, &allowed);
        ensure!(again == first, "{}: another answer: {again:?}", case.name);
    }
    Ok(())
}

fn answer(case: &Case, body: &[u8], knowledge: &Knowledge, allowed: &Allowed) -> Answer {
    let decide = |review: Review<'_>| {
        let knowledge = review.need().map_or_else(Knowledge::default, |_| knowledge.clone());
        review.decide(&knowledge, allowed)
    };
    match parse(case.endpoint, body).map(decide) {
        Ok(Decision::Final(answer)) | Err(answer) => answer,
        Ok(Decision::NeedsAccess(access)) => access.granted(),
    }
}

/// The CPU time that this thread has used.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanos = text.split(' ').next().and_then(|text| text.parse().ok());
    Duration::from_nanos(nanos.expect("nanoseconds"))
}
