//! Who talks to whom.

use crate::svg::Svg;

/// Left, top, width, height; a title and further lines.
const BOXES: [([f64; 4], &str, &[&str]); 9] = [
    ([30.0, 60.0, 170.0, 62.0], "You", &["kubectl, Argo CD, Flux"]),
    ([300.0, 60.0, 300.0, 62.0], "API server", &["KSMScale, Node, Pod, Lease, Secret"]),
    ([180.0, 200.0, 500.0, 150.0], "ksm-scale-operator, each of its replicas", &[]),
    ([200.0, 240.0, 150.0, 92.0], "webhooks", &["default, refuse, advise", "any replica answers"]),
    (
        [370.0, 240.0, 290.0, 92.0],
        "controller",
        &["read → plan → prove → apply → tell", "each KSMScale has one owner, by Leases"],
    ),
    ([30.0, 440.0, 170.0, 62.0], "Prometheus", &["rules, alerts, dashboard"]),
    ([300.0, 440.0, 100.0, 62.0], "shard 0", &["of 3"]),
    ([415.0, 440.0, 100.0, 62.0], "shard 1", &["of 3"]),
    ([530.0, 440.0, 100.0, 62.0], "shard 2", &["of 3"]),
];

const ARROWS: [&[(f64, f64)]; 7] = [
    &[(200.0, 91.0), (300.0, 91.0)],
    &[(325.0, 122.0), (325.0, 200.0)],
    &[(440.0, 122.0), (440.0, 200.0)],
    &[(560.0, 200.0), (560.0, 122.0)],
    &[(465.0, 350.0), (465.0, 440.0)],
    &[(200.0, 471.0), (300.0, 471.0)],
    &[(630.0, 471.0), (740.0, 471.0), (740.0, 91.0), (600.0, 91.0)],
];

/// Beside the arrows.
const LABELS: [(f64, f64, &str, &str); 10] = [
    (250.0, 82.0, "small middle", "KSMScale"),
    (317.0, 165.0, "small end", "may this be stored?"),
    (448.0, 165.0, "small", "nodes, pods"),
    (568.0, 165.0, "small", "one pod made or deleted"),
    (474.0, 383.0, "small", "what do you serve?"),
    (474.0, 400.0, "small", "before each delete, and in audits"),
    (250.0, 462.0, "small middle", "scrapes"),
    (748.0, 270.0, "small", "all objects;"),
    (748.0, 287.0, "small", "each keeps those"),
    (748.0, 304.0, "small", "of its shard"),
];

pub fn draw() -> String {
    let mut svg = Svg::new(
        880.0,
        530.0,
        "Architecture: the operator watches nodes and pods, creates and deletes pods of \
         kube-state-metrics, and asks these what they serve before it deletes one",
    );
    svg.text(30.0, 30.0, "title", "Who talks to whom");
    for ([x, y, width, height], title, lines) in BOXES {
        svg.rect([x, y, width, height], "box");
        let middle = x + width / 2.0;
        svg.text(middle, y + 26.0, "middle", title);
        let mut line_at = y + 46.0;
        for line in lines {
            svg.text(middle, line_at, "small middle", line);
            line_at += 18.0;
        }
    }
    for points in ARROWS {
        svg.arrow(points);
    }
    for (x, y, class, label) in LABELS {
        svg.text(x, y, class, label);
    }
    svg.text(300.0, 522.0, "small", "kube-state-metrics, as plain pods");
    svg.finish()
}
