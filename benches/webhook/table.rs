//! The figures of all sides, and how they are printed.

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
    /// By side.
    samples: [Vec<f64>; 3],
}

impl Table {
    /// One sample more of a figure.
    pub fn add(&mut self, figure: &Figure, side: Side, sample: f64) {
        let at = self.0.iter().position(|row| row.figure.name == figure.name);
        let at = at.unwrap_or_else(|| {
            self.0.push(Row { figure: figure.clone(), samples: Default::default() });
            self.0.len() - 1
        });
        self.0[at].samples[side as usize].push(sample);
    }

    pub fn print(&mut self) {
        println!("| figure | goal | ours | controller-runtime | ratio | floor | method |");
        println!("| --- | --- | --- | --- | --- | --- | --- |");
        for Row { figure, samples } in &mut self.0 {
            let Figure { name, goal, unit, method } = figure;
            let [ours, peer, floor] = samples.each_mut().map(|samples| Spread::of(samples));
            let ratio = match (&ours, &peer) {
                (Some(ours), Some(peer)) => format!("{:.1}", peer.median / ours.median),
                _ => "–".to_owned(),
            };
            let text = |spread: Option<Spread>| {
                spread.map_or("–".to_owned(), |Spread { median, min, max }| {
                    format!("**{}** {unit} ({}–{})", short(median), short(min), short(max))
                })
            };
            let [ours, peer, floor] = [ours, peer, floor].map(text);
            println!("| {name} | {goal} | {ours} | {peer} | {ratio} | {floor} | {method} |");
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
