//! Generated files stand in the repository as generated. `UPDATE=1 cargo test --test golden`
//! (`make update`) writes them.

use ksm_scale_operator::manifests;
use std::{fmt::Write, path::Path};

fn golden(path: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    #[expect(clippy::disallowed_methods, reason = "the variable is this test's interface")]
    if std::env::var("UPDATE").is_ok() {
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("the folder can be made");
        std::fs::write(&file, text).expect("the file can be written");
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        committed == text,
        "{path} is not as generated: run `make update` and look at the diff"
    );
}

#[test]
fn r11_o4_committed_manifests_are_as_generated() {
    for manifest in manifests::all().expect("manifests can be generated") {
        golden(manifest.path, &manifest.text);
    }
}

/// Who finds an option missing here has changed the command line.
#[test]
fn o1_help_texts_are_as_committed() {
    use clap::CommandFactory;
    let mut command = ksm_scale_operator::cli::Cli::command();
    let mut text = command.render_long_help().to_string();
    for name in ["run", "validate", "plan", "crd", "manifests"] {
        let sub = command.find_subcommand_mut(name).expect("a subcommand");
        let _ = write!(text, "\n---- {name}\n{}", sub.render_long_help());
    }
    golden("tests/golden/help.txt", &text);
}
