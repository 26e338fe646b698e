//! What was missing while the number of shards changed.

use crate::svg::Svg;
use ksm_scale_operator::{
    forecast,
    validate::{Scale, Valid, validate},
};
use serde_json::json;
use std::fmt::Write as _;

/// In the order of the legend: as in the data, as in the legend, how drawn.
static WAYS: [(&str, &str, &str, f64, &str); 3] = [
    ("operator", "this operator", "a", 4.0, "none"),
    ("rolling", "rolling change, shard by shard", "b", 2.0, "none"),
    ("autosharding", "autosharding (emulated)", "c", 2.0, "7 3"),
];

/// Of a panel: left, width, height.
const LEFT: f64 = 64.0;
const WIDTH: f64 = 780.0;
const HEIGHT: f64 = 190.0;
/// Tops of the panels.
const TOPS: [f64; 2] = [108.0, 378.0];

/// Everything that was measured.
pub struct Data {
    pub runs: Vec<Run>,
}

/// One change, made one way.
pub struct Run {
    pub way: String,
    pub change: String,
    rows: Vec<Row>,
}

/// Samples that agree, and when the first of them began; milliseconds.
struct Row {
    at: f64,
    samples: u32,
    gap: u32,
    expected: f64,
    missing: f64,
    duplicated: f64,
    done: bool,
}

impl Data {
    pub fn parse(csv: &str) -> Self {
        let mut runs = Vec::<Run>::new();
        for line in csv.lines().skip(1) {
            let fields: Vec<&str> = line.split(',').collect();
            let [way, change, at, samples, gap, _, expected, missing, duplicated, done] =
                fields[..]
            else {
                panic!("not ten fields: {line}");
            };
            let number = |text: &str| text.parse::<f64>().expect("a number");
            let row = Row {
                at: number(at),
                samples: samples.parse().expect("a number"),
                gap: gap.parse().expect("a number"),
                expected: number(expected),
                missing: number(missing),
                duplicated: number(duplicated),
                done: done == "1",
            };
            match runs.last_mut() {
                Some(run) if run.way == way && run.change == change => run.rows.push(row),
                _ => runs.push(Run { way: way.into(), change: change.into(), rows: vec![row] }),
            }
        }
        assert!(!runs.is_empty(), "there are no samples");
        Self { runs }
    }
}

impl Run {
    /// The most that was missing, in percent of what should have been there.
    pub fn worst(&self) -> f64 {
        self.rows.iter().map(|row| 100.0 * row.missing / row.expected).fold(0.0, f64::max)
    }

    fn most_duplicated(&self) -> f64 {
        self.rows.iter().map(|row| 100.0 * row.duplicated / row.expected).fold(0.0, f64::max)
    }

    /// Seconds of samples, each with what `of` says of them.
    fn sum(&self, of: impl Fn(&Row) -> f64) -> f64 {
        self.rows.windows(2).map(|pair| of(&pair[0]) * (pair[1].at - pair[0].at) / 1e3).sum()
    }

    /// Seconds from the request until the change was said to be done.
    fn took(&self) -> f64 {
        self.rows.iter().find(|row| row.done).map_or(0.0, |row| row.at / 1e3)
    }

    fn end(&self) -> f64 {
        self.rows.last().map_or(0.0, |row| row.at / 1e3)
    }

    fn shards(&self) -> (u32, u32) {
        let (from, to) = self.change.split_once('-').expect("from-to");
        (from.parse().expect("a number"), to.parse().expect("a number"))
    }
}

pub fn table(data: &Data) -> String {
    let mut text = "| change | way | most missing | seconds with something missing | object-seconds lost | most duplicated | planned | until done | samples (longest pause) |\n\
                    | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for (run, name) in by_change(data) {
        let (from, to) = run.shards();
        let planned = match run.way.as_str() {
            "operator" => format!("{:.1} %", planned(from, to)),
            _ => "–".to_owned(),
        };
        let samples: u32 = run.rows.iter().map(|row| row.samples).sum();
        let gap = run.rows.iter().map(|row| row.gap).max().unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {from} → {to} | {name} | **{:.1} %** | {:.1} | {:.0} | {:.1} % | {planned} | {:.0} s | {samples} ({gap} ms) |",
            run.worst(),
            run.sum(|row| f64::from(u8::from(row.missing > 0.0))),
            run.sum(|row| row.missing),
            run.most_duplicated(),
            run.took(),
        );
    }
    text
}

/// The first columns of [`table`].
pub fn short_table(data: &Data) -> String {
    let table = table(data);
    let short = table.lines().map(|line| line.split('|').take(5).collect::<Vec<_>>().join("|"));
    short.map(|line| line + "|\n").collect()
}

/// All ways of the first change, then those of the second.
fn by_change(data: &Data) -> impl Iterator<Item = (&Run, &'static str)> {
    let mut changes: Vec<_> = data.runs.iter().map(|run| run.change.as_str()).collect();
    changes.dedup();
    changes.truncate(TOPS.len());
    changes.into_iter().flat_map(move |change| {
        WAYS.iter().filter_map(move |(way, name, ..)| {
            let run = data.runs.iter().find(|run| run.way == *way && run.change == change)?;
            Some((run, *name))
        })
    })
}

/// The most duplicates of any step that the planner announces, in percent.
fn planned(from: u32, to: u32) -> f64 {
    let steps = forecast::steps(&scale(from), &scale(to), 100);
    steps.iter().map(|step| 100.0 * step.coverage.duplicates()).fold(0.0, f64::max)
}

fn scale(shards: u32) -> Valid<Scale> {
    let scale = json!({
        "metadata": { "name": "exposed", "uid": "uid", "generation": 1 },
        "spec": {
            "nodesPerMonitor": 10_000,
            "sharding": { "enabled": true, "shardCount": shards },
        },
    });
    validate(&scale).expect("a valid spec")
}

pub fn draw(data: &Data) -> String {
    let mut svg = Svg::new(
        880.0,
        620.0,
        "Objects that no pod of kube-state-metrics exposed while 3 shards became 5 and 5 became 3: \
         none with this operator, many with a rolling change and with autosharding",
    );
    svg.text(
        LEFT,
        28.0,
        "title",
        "Objects that no pod exposes, while the number of shards changes",
    );
    let mut x = LEFT;
    for (_, name, class, width, dashes) in WAYS {
        svg.line(&[(x, 52.0), (x + 34.0, 52.0)], class, width, dashes);
        svg.text(x + 42.0, 56.5, "", name);
        x += 260.0;
    }
    let seconds = data.runs.iter().map(Run::end).fold(0.0, f64::max);
    for (top, change) in TOPS.into_iter().zip(["3-5", "5-3"]) {
        let runs: Vec<_> = data.runs.iter().filter(|run| run.change == change).collect();
        panel(&mut svg, top, &runs, seconds);
    }
    svg.text(
        LEFT,
        612.0,
        "small",
        "Seconds since the change was asked for. A dot: whoever makes the change says that it is done.",
    );
    svg.finish()
}

fn panel(svg: &mut Svg, top: f64, runs: &[&Run], seconds: f64) {
    let begin = -3.0;
    let x = |second: f64| LEFT + (second - begin) / (seconds - begin) * WIDTH;
    let y = |percent: f64| top + HEIGHT - percent / 100.0 * HEIGHT;
    if let Some((from, to)) = runs.first().map(|run| run.shards()) {
        svg.text(LEFT, top - 14.0, "title", &format!("From {from} to {to} shards"));
    }
    for percent in [0.0, 25.0, 50.0, 75.0, 100.0] {
        svg.line(&[(x(begin), y(percent)), (x(seconds), y(percent))], "grid", 1.0, "none");
        svg.text(LEFT - 8.0, y(percent) + 4.0, "small end", &format!("{percent:.0} %"));
    }
    let mut second = 0.0;
    while second <= seconds {
        svg.line(&[(x(second), y(0.0)), (x(second), y(0.0) + 5.0)], "axis", 1.0, "none");
        svg.text(x(second), y(0.0) + 19.0, "small middle", &format!("{second:.0}"));
        second += 10.0;
    }
    // The operator's line lies on the axis: the last one is the one on top.
    for (way, _, class, width, dashes) in WAYS.iter().rev() {
        for run in runs.iter().filter(|run| run.way == *way) {
            let mut points = Vec::new();
            for pair in run.rows.windows(2) {
                let level = y(100.0 * pair[0].missing / pair[0].expected);
                points.extend([(x(pair[0].at / 1e3), level), (x(pair[1].at / 1e3), level)]);
            }
            svg.line(&points, class, *width, dashes);
            let done = run.rows.iter().find(|row| row.done);
            if let Some(row) = done {
                let level = y(100.0 * row.missing / row.expected);
                svg.circle(x(row.at / 1e3), level, &format!("f{class}"));
            }
        }
    }
}
