//! The pictures in docs/pictures, and tables of what they show, are made of the data beside them.
//! `UPDATE=1 cargo test --test pictures` (`make pictures`) writes them.

#![allow(clippy::panic, reason = "a helper of tests reports as a test does")]
#![allow(unreachable_pub, reason = "modules of one program, with the visibility of a library")]

#[path = "pictures/architecture.rs"]
mod architecture;
#[path = "pictures/exposure.rs"]
mod exposure;
#[path = "pictures/svg.rs"]
mod svg;
#[path = "pictures/takeover.rs"]
mod takeover;

use std::{fs, path::Path};

fn read(path: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&file).unwrap_or_default()
}

/// The file is as wanted, or is made so.
fn file(path: &str, wanted: &str) {
    #[expect(clippy::disallowed_methods, reason = "the variable is this test's interface")]
    if std::env::var("UPDATE").is_ok() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        fs::write(file, wanted).expect("the file can be written");
    }
    assert!(read(path) == wanted, "{path} is not as drawn from the data: run `make pictures`");
}

/// What stands between two comments of a page is as wanted, or is made so.
fn part(path: &str, name: &str, wanted: &str) {
    let page = read(path);
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let (before, rest) = page.split_once(&begin).expect("the comment at the beginning");
    let (_, after) = rest.split_once(&end).expect("the comment at the end");
    file(path, &format!("{before}{begin}{wanted}{end}{after}"));
}

#[test]
fn the_picture_of_exposure_and_its_table_are_those_of_the_samples() {
    let data = exposure::Data::parse(&read("docs/pictures/exposure.csv"));
    file("docs/pictures/exposure.svg", &exposure::draw(&data));
    part("docs/exposure.md", "measured", &exposure::table(&data));
    part("README.md", "measured", &exposure::short_table(&data));
}

/// The claim of the picture, whatever was measured last.
#[test]
fn v1_in_the_samples_the_operator_lost_nothing_and_the_other_ways_did() {
    let data = exposure::Data::parse(&read("docs/pictures/exposure.csv"));
    for run in &data.runs {
        let lost = run.worst() > 0.0;
        assert!(lost == (run.way != "operator"), "{} {}: {}", run.way, run.change, run.worst());
    }
}

#[test]
fn the_picture_of_the_architecture_is_as_drawn() {
    file("docs/pictures/architecture.svg", &architecture::draw());
}

#[test]
fn the_picture_of_a_takeover_is_that_of_the_observations() {
    let data = read("docs/pictures/takeover.csv");
    file("docs/pictures/takeover.svg", &takeover::draw(&takeover::parse(&data)));
}
