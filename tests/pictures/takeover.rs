//! Who may act on which part of the work, while a replica dies and comes back.

use crate::svg::Svg;

const LEFT: f64 = 110.0;
const TOP: f64 = 92.0;
const WIDTH: f64 = 730.0;
const HEIGHT: f64 = 240.0;
/// Of the whole.
const PARTITIONS: f64 = 4_096.0;
const CLASSES: [&str; 3] = ["fa", "fb", "fc"];

/// One observation.
pub struct Moment {
    seconds: f64,
    parts: Vec<f64>,
    event: String,
}

/// The names of the replicas, and what they were seen to own.
pub fn parse(csv: &str) -> (Vec<String>, Vec<Moment>) {
    let mut lines = csv.lines();
    let names: Vec<_> = lines.next().expect("a line of names").split(',').collect();
    let names = names[1..names.len() - 1].iter().map(|&name| name.to_owned()).collect();
    let moment = |line: &str| {
        let fields: Vec<_> = line.split(',').collect();
        let number = |text: &str| text.parse::<f64>().expect("a number");
        let (last, parts) = fields[1..].split_last().expect("an event");
        Moment {
            seconds: number(fields[0]) / 1e3,
            parts: parts.iter().map(|text| number(text)).collect(),
            event: (*last).to_owned(),
        }
    };
    (names, lines.map(moment).collect())
}

pub fn draw((names, moments): &(Vec<String>, Vec<Moment>)) -> String {
    let mut svg = Svg::new(
        880.0,
        420.0,
        "Who may act on which part of the work: three replicas share it, one is killed, its part \
         is nobody's until its Lease has ended, the others take it over, and it gets a part again \
         after a restart",
    );
    svg.text(30.0, 28.0, "title", "Who may act on which part of the work");
    let end = moments.last().map_or(1.0, |moment| moment.seconds);
    let x = |seconds: f64| LEFT + seconds / end * WIDTH;
    let y = |part: f64| TOP + part / PARTITIONS * HEIGHT;
    svg.rect([LEFT, TOP, WIDTH, HEIGHT], "nobody");
    for pair in moments.windows(2) {
        let (left, width) = (x(pair[0].seconds), x(pair[1].seconds) - x(pair[0].seconds));
        // From the top and from the bottom, so that what is nobody's is in between where it was.
        let mut top = 0.0;
        let [first, middle, last] = pair[0].parts[..] else { panic!("three replicas") };
        for (part, class) in [(first, CLASSES[0]), (middle, CLASSES[1])] {
            svg.band([left, y(top), width, y(part) - TOP], class);
            top += part;
        }
        svg.band([left, y(PARTITIONS - last), width, y(last) - TOP], CLASSES[2]);
    }
    if let Some(first) = moments.first() {
        let mut top = 0.0;
        for (name, part) in names.iter().zip(&first.parts) {
            svg.text(LEFT - 8.0, y(top + part / 2.0) + 4.0, "end", name);
            top += part;
        }
    }
    for moment in moments.iter().filter(|moment| !moment.event.is_empty()) {
        let at = x(moment.seconds);
        svg.line(&[(at, TOP - 22.0), (at, TOP + HEIGHT)], "axis", 1.5, "4 3");
        let (x, class) =
            if moment.seconds > end / 2.0 { (at - 5.0, "end") } else { (at + 5.0, "") };
        svg.text(x, TOP - 12.0, class, &moment.event);
    }
    let mut second = 0.0;
    while second <= end {
        let bottom = TOP + HEIGHT;
        svg.line(&[(x(second), bottom), (x(second), bottom + 5.0)], "axis", 1.0, "none");
        svg.text(x(second), bottom + 20.0, "small middle", &format!("{second:.0} s"));
        second += 5.0;
    }
    svg.rect([LEFT, 378.0, 14.0, 14.0], "nobody");
    svg.text(LEFT + 22.0, 390.0, "small", "nobody's: a replica that is dead, or one that hands over, acts no more, and the next one not yet");
    svg.finish()
}
