//! Scalable vector graphics that read on a light and on a dark page.

use std::fmt::Write as _;

/// Text stands on the page's own background, so its colour has to follow the reader's.
const STYLE: &str = "\
text{font:13px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2328}
.title{font-size:15px;font-weight:600}
.small{font-size:12px;fill:#59636e}
.end{text-anchor:end}.middle{text-anchor:middle}
.back{fill:#ffffff}
.grid{stroke:#d1d9e0;stroke-width:1;fill:none}
.axis{stroke:#59636e;stroke-width:1;fill:none}
.box{fill:#f6f8fa;stroke:#59636e;stroke-width:1.2}
.line{fill:none;stroke-linejoin:round}
.arrow{stroke:#59636e;stroke-width:1.4;fill:none}
.head{fill:#59636e}
.a{stroke:#0969da}.b{stroke:#bc4c00}.c{stroke:#8250df}
.fa{fill:#0969da}.fb{fill:#bc4c00}.fc{fill:#8250df}
.nobody{fill:#cf222e}
@media(prefers-color-scheme:dark){
text{fill:#f0f6fc}.small{fill:#9198a1}
.back{fill:#0d1117}
.grid{stroke:#3d444d}.axis,.box,.arrow{stroke:#9198a1}.head{fill:#9198a1}.box{fill:#151b23}
.a{stroke:#4493f8}.b{stroke:#f0883e}.c{stroke:#ab7df8}
.fa{fill:#4493f8}.fb{fill:#f0883e}.fc{fill:#ab7df8}
.nobody{fill:#f85149}
}
";

/// A picture under way.
pub struct Svg {
    text: String,
}

impl Svg {
    /// What is on it, for those who do not see it.
    pub fn new(width: f64, height: f64, description: &str) -> Self {
        let description = escape(description);
        let text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{description}\">\n\
             <title>{description}</title>\n<style>\n{STYLE}</style>\n\
             <rect class=\"back\" width=\"{width}\" height=\"{height}\"/>\n"
        );
        Self { text }
    }

    pub fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let text = escape(text);
        self.add(&format!("<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{text}</text>"));
    }

    pub fn rect(&mut self, [x, y, width, height]: [f64; 4], class: &str) {
        self.add(&format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"3\" class=\"{class}\"/>"
        ));
    }

    /// A rectangle that meets its neighbours.
    pub fn band(&mut self, [x, y, width, height]: [f64; 4], class: &str) {
        if width > 0.0 && height > 0.0 {
            self.add(&format!(
                "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" class=\"{class}\"/>"
            ));
        }
    }

    pub fn circle(&mut self, x: f64, y: f64, class: &str) {
        self.add(&format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" class=\"{class}\"/>"));
    }

    /// A line through points.
    pub fn line(&mut self, points: &[(f64, f64)], class: &str, width: f64, dashes: &str) {
        let points: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let points = points.join(" ");
        self.add(&format!(
            "<polyline points=\"{points}\" class=\"line {class}\" style=\"stroke-width:{width};stroke-dasharray:{dashes}\"/>"
        ));
    }

    /// A line with a head at its end.
    pub fn arrow(&mut self, points: &[(f64, f64)]) {
        let (Some(&(x, y)), Some(&(from_x, from_y))) = (points.last(), points.iter().nth_back(1))
        else {
            return;
        };
        let length = (x - from_x).hypot(y - from_y);
        let (dx, dy) = ((x - from_x) / length, (y - from_y) / length);
        let at = |along: f64, across: f64| {
            format!("{:.1},{:.1}", x - dx * along - dy * across, y - dy * along + dx * across)
        };
        let (left, right) = (at(8.0, 4.0), at(8.0, -4.0));
        let points: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.add(&format!("<polyline points=\"{}\" class=\"arrow\"/>", points.join(" ")));
        self.add(&format!("<polygon points=\"{x:.1},{y:.1} {left} {right}\" class=\"head\"/>"));
    }

    pub fn finish(mut self) -> String {
        self.add("</svg>");
        self.text
    }

    fn add(&mut self, element: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{element}");
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
