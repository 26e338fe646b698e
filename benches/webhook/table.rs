//! The figures of both sides, and how they are printed.

use super::servers::Side;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Figure {
    pub name: String,
    pub goal: &'static str,
    pub unit: &'static str,
    pub method: String,
}

/// Samples of each figure, in the order in which figures first came.
#[derive(Default)]
pub struct Table(Vec<Row>);

struct Row {
    figure: Figure,
    ours: Vec<f64>,
    peer: Vec<f64>,
}

impl Table {
    /// One sample more of a figure.
    pub fn add(&mut self, figure: &Figure, side: Side, sample: f64) {
        let at = self.0.iter().position(|row| row.figure.name == figure.name);
        let at = at.unwrap_or_else(|| {
            self.0.push(Row { figure: figure.clone(), ours: Vec::new(), peer: Vec::new() });
            self.0.len() - 1
        });
        match side {
            Side::Ours => self.0[at].ours.push(sample),
            Side::Peer => self.0[at].peer.push(sample),
        }
    }

    pub fn print(&mut self) {
        println!("| figure | goal | ours | controller-runtime | ratio | method |");
        println!("| --- | --- | --- | --- | --- | --- |");
        for Row { figure, ours, peer } in &mut self.0 {
            let Figure { name, goal, unit, method } = figure;
            let (ours, peer) = (Spread::of(ours), Spread::of(peer));
            let ratio = match (&ours, &peer) {
                (Some(ours), Some(peer)) => format!("{:.1}", peer.median / ours.median),
                _ => "–".to_owned(),
            };
            let text = |spread: Option<Spread>| {
                spread.map_or("–".to_owned(), |Spread { median, min, max }| {
                    format!("**{}** {unit} ({}–{})", short(median), short(min), short(max))
                })
            };
            println!("| {name} | {goal} | {} | {} | {ratio} | {method} |", text(ours), text(peer));
        }
    }
}

struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(samples: &mut [f64]) -> Option<Self> {
        samples.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*samples.first()?, *samples.last()?);
        Some(Self { median: samples[samples.len() / 2], min, max })
    }
}

/// Three digits, as none of the figures is good for more.
fn short(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
