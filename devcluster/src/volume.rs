//! A mounted Secret.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A directory in which a Secret is mounted, written as the kubelet does: the files stand in a
/// folder of their own, `..data` leads to it, and each file is a link through `..data`.
///
/// The directory is the caller's to make and to remove.
#[derive(Debug)]
pub struct SecretVolume {
    dir: PathBuf,
    written: u32,
}

impl SecretVolume {
    /// A volume in an empty directory.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), written: 0 }
    }

    /// Replaces every file at once: writes a new folder, renames a new link over `..data`, and
    /// removes the old folder.
    pub fn write(&mut self, files: &[(&str, &[u8])]) -> io::Result<()> {
        let old = self.prepare(files)?;
        self.swap()?;
        if let Some(old) = old { fs::remove_dir_all(old) } else { Ok(()) }
    }

    /// The first part of [`SecretVolume::write`]: the new folder, which nothing leads to yet.
    /// Returns the one that is in use.
    pub fn prepare(&mut self, files: &[(&str, &[u8])]) -> io::Result<Option<PathBuf>> {
        let old = fs::canonicalize(self.dir.join("..data")).ok();
        self.written += 1;
        let folder = self.folder();
        fs::create_dir_all(&folder)?;
        for (name, content) in files {
            fs::write(folder.join(name), content)?;
            let link = self.dir.join(name);
            if link.symlink_metadata().is_err() {
                symlink(Path::new("..data").join(name), link)?;
            }
        }
        Ok(old)
    }

    /// The second part: from now on the files are those of [`SecretVolume::prepare`].
    pub fn swap(&self) -> io::Result<()> {
        let link = self.dir.join("..data_tmp");
        symlink(self.folder().file_name().unwrap_or_default(), &link)?;
        fs::rename(link, self.dir.join("..data"))
    }

    /// The newest folder. The kubelet's has the time in its name.
    fn folder(&self) -> PathBuf {
        self.dir.join(format!("..2026_01_01_00_00_00.{:010}", self.written))
    }
}
