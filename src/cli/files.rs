//! KSMScales in files, folders and standard input.

use crate::{
    api::KSMScale,
    source::{Document, documents},
};
use anyhow::Context as _;
use kube::Resource;
use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

/// A KSMScale as somebody wrote it.
pub(super) struct Written {
    /// The file, or `<stdin>`.
    pub(super) file: String,
    pub(super) document: Document,
}

impl Written {
    /// Its name, or what stands for one that has none.
    pub(super) fn name(&self) -> &str {
        self.document.json["metadata"]["name"].as_str().unwrap_or("<unnamed>")
    }
}

/// What was found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) scales: Vec<Written>,
    /// Objects of other kinds.
    pub(super) skipped: usize,
}

/// Reads every KSMScale of the files given: `-` is standard input, and of a folder all files that
/// end in `.yaml`, `.yml` or `.json`, however deep.
///
/// # Errors
/// The first file that cannot be read, or is not YAML.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Found> {
    let mut found = Found::default();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            found.add("<stdin>", &text)?;
            continue;
        }
        for file in files_of(path)? {
            let name = file.display().to_string();
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {name}"))?;
            found.add(&name, &text)?;
        }
    }
    Ok(found)
}

fn files_of(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    // In the same order everywhere, whatever the file system's is.
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if path.is_dir() {
            files.extend(files_of(&path)?);
        } else if matches!(ending, "yaml" | "yml" | "json") {
            files.push(path);
        }
    }
    Ok(files)
}

impl Found {
    fn add(&mut self, file: &str, text: &str) -> anyhow::Result<()> {
        let documents = documents(text).with_context(|| format!("{file} is not YAML"))?;
        for document in documents.into_iter().flat_map(Document::objects) {
            if is_scale(&document) {
                self.scales.push(Written { file: file.to_owned(), document });
            } else {
                self.skipped += 1;
            }
        }
        Ok(())
    }
}

/// By kind and group: a version that does not exist is an error to tell, not another kind.
fn is_scale(document: &Document) -> bool {
    let version = document.json["apiVersion"].as_str().unwrap_or_default();
    document.json["kind"] == *KSMScale::kind(&())
        && version.split('/').next() == Some(&KSMScale::group(&()))
}
