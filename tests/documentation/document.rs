//! What a page tells its reader to do, in order.

use std::path::Path;

/// One thing that a page shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// A command line, and what it prints if the page says so.
    Command { text: String, output: Option<String> },
    /// A block of YAML.
    Yaml(String),
    /// A block that is neither: a picture, or a language that nothing here runs.
    Other { language: String, text: String },
}

/// A step and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) page: &'static str,
    pub(crate) section: String,
    pub(crate) line: usize,
    pub(crate) step: Step,
}

/// How commands begin that stand in the middle of a sentence or in a table.
const PROGRAMS: [&str; 9] = [
    "kubectl ",
    "ksm-scale-operator ",
    "curl ",
    "make ",
    "cargo ",
    "helm ",
    "docker ",
    "cmctl ",
    "git ",
];

struct Reader {
    page: &'static str,
    section: String,
    /// What stands between blocks, with the line it begins in.
    prose: (usize, String),
    shown: Vec<Shown>,
}

/// Everything that the page at `path` shows: blocks, and commands in backticks.
pub(crate) fn read(page: &'static str) -> Vec<Shown> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{page}: {error}"));
    parse(page, &text)
}

fn parse(page: &'static str, text: &str) -> Vec<Shown> {
    let mut reader =
        Reader { page, section: String::new(), prose: (1, String::new()), shown: Vec::new() };
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            let follows = reader.prose.1.trim().is_empty();
            reader.end_prose(at + 2);
            // A block in a list is as far to the right as its fence.
            let margin = line.len() - line.trim_start().len();
            let block = lines.by_ref().map(|(_, line)| line.get(margin..).unwrap_or_default());
            let block: Vec<_> = block.take_while(|line| line.trim() != "```").collect();
            reader.block(language, &block, at + 2, follows);
            reader.prose.0 = at + block.len() + 3;
        } else if line.starts_with("## ") || line.starts_with("### ") {
            reader.end_prose(at + 2);
            reader.section = String::from(line.trim_start_matches('#').trim());
        } else {
            reader.prose.1 += line;
            reader.prose.1 += "\n";
        }
    }
    reader.end_prose(0);
    reader.shown
}

impl Reader {
    fn push(&mut self, line: usize, step: Step) {
        let (page, section) = (self.page, self.section.clone());
        self.shown.push(Shown { page, section, line, step });
    }

    fn command(&mut self, line: usize, text: String, output: Option<String>) {
        self.push(line, Step::Command { text, output });
    }

    /// Commands in backticks. A span may go over the end of a line.
    fn end_prose(&mut self, next: usize) {
        let (mut line, prose) = std::mem::replace(&mut self.prose, (next, String::new()));
        for (i, part) in prose.split('`').enumerate() {
            if i % 2 == 1 && PROGRAMS.iter().any(|program| part.starts_with(program)) {
                self.command(line, part.replace('\n', " "), None);
            }
            line += part.matches('\n').count();
        }
    }

    /// `follows`: there is nothing between the last step and this block.
    fn block(&mut self, language: &str, block: &[&str], line: usize, follows: bool) {
        let text = block.join("\n") + "\n";
        match language {
            "sh" => {
                for (at, command) in commands(block) {
                    self.command(line + at, command, None);
                }
            }
            "text" | "console" if text.starts_with("$ ") => self.session(block, line),
            "text" | "console" if follows => match self.shown.last_mut() {
                Some(Shown { step: Step::Command { output: output @ None, .. }, .. }) => {
                    *output = Some(text);
                }
                _ => self.push(line, Step::Other { language: language.to_owned(), text }),
            },
            "yaml" => {
                let runs = block.iter().filter_map(|line| line.trim().strip_prefix("- run: "));
                let runs: Vec<_> = runs.map(str::to_owned).collect();
                if runs.is_empty() {
                    self.push(line, Step::Yaml(text));
                }
                for run in runs {
                    self.command(line, run, None);
                }
            }
            _ => self.push(line, Step::Other { language: language.to_owned(), text }),
        }
    }

    /// Commands after `$ `, each with its output.
    fn session(&mut self, block: &[&str], line: usize) {
        for (at, text) in block.iter().enumerate() {
            if let Some(command) = text.strip_prefix("$ ") {
                self.command(line + at, command.to_owned(), Some(String::new()));
            } else if let Some(Shown { step: Step::Command { output: Some(output), .. }, .. }) =
                self.shown.last_mut()
            {
                *output += text;
                *output += "\n";
            }
        }
    }
}

/// The commands of a block for a shell, with the line of each. A backslash at the end of a line and a
/// here-document go on in the next.
fn commands(block: &[&str]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut lines = block.iter().enumerate();
    while let Some((at, line)) = lines.next() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let mut text = (*line).to_owned();
        let end = line.split_once("<<").map(|(_, end)| end.trim_matches(['\'', '"', '-', ' ']));
        while text.ends_with('\\') || end.is_some_and(|end| text.lines().last() != Some(end)) {
            let Some((_, next)) = lines.next() else { break };
            text += "\n";
            text += next;
        }
        // A comment behind a command is for people.
        let text =
            if end.is_none() { text.split("   #").next().unwrap_or_default() } else { &text };
        found.push((at, text.trim_end().to_owned()));
    }
    found
}

#[test]
fn o8_a_page_is_read_as_people_read_it() {
    let page = "## One\nSay `make demo`, or `kubectl get\npods`; `spec` is a field.\n\n\
        ```sh\n# not run\nkubectl get a   # is run\nkubectl create \\\n  b\n```\n\n\
        ```text\nNAME\na\n```\n\n## Two\n\n```text\n$ false\n$ echo hi\nhi\n```\nWords.\n\n\
        ```text\na picture\n```\n```yaml\n- run: true\n```\n```yaml\nkind: List\n```\n";
    let command = |text: &str, output: Option<&str>| Step::Command {
        text: text.to_owned(),
        output: output.map(str::to_owned),
    };
    let shown = parse("page.md", page);
    let steps: Vec<_> = shown.iter().map(|shown| shown.step.clone()).collect();
    let other = Step::Other { language: "text".to_owned(), text: "a picture\n".to_owned() };
    let wanted = [
        command("make demo", None),
        command("kubectl get pods", None),
        command("kubectl get a", None),
        command("kubectl create \\\n  b", Some("NAME\na\n")),
        command("false", Some("")),
        command("echo hi", Some("hi\n")),
        other,
        command("true", None),
        Step::Yaml("kind: List\n".to_owned()),
    ];
    assert_eq!(steps, wanted);
    let places: Vec<_> = shown.iter().map(|s| (s.section.as_str(), s.line)).collect();
    assert_eq!(places[1..5], [("One", 2), ("One", 7), ("One", 8), ("Two", 20)]);
}
