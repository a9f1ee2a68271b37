//! Writes an image archive from files.
//!
//! Owns the archive's form: the same content always gives the same bytes, and so the same digest, whatever the time and
//! whoever builds.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// What could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file of the host could not be read.
    #[error("read {path} for the image")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// A layer could not be put together.
    #[error("add {path} to the image")]
    Layer {
        /// The path inside.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// The archive could not be written.
    #[error("write the image {path}")]
    Write {
        /// The archive.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

/// An image to be.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    reference: String,
    entries: BTreeMap<PathBuf, Item>,
    config: Value,
}

#[derive(Debug, Clone)]
struct Item {
    mode: u32,
    owner: u64,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Directory,
    File(Vec<u8>),
    Link(PathBuf),
}

/// A written image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its full name, registry and tag included.
    pub reference: String,
    /// Digest of its manifest, `sha256:` and 64 hexadecimal digits: what a node's image store shows.
    pub digest: String,
    /// The archive on the host.
    pub archive: PathBuf,
}

/// The full form of an image's name, as containerd keeps it: `redis:1` is `docker.io/library/redis:1`.
pub fn canonical(reference: &str) -> String {
    let (name, tag) = match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (reference, "latest"),
    };
    let has_registry =
        name.split_once('/').is_some_and(|(first, _)| first.contains(['.', ':']) || first == "localhost");
    match (has_registry, name.contains('/')) {
        (true, _) => format!("{name}:{tag}"),
        (false, true) => format!("docker.io/{name}:{tag}"),
        (false, false) => format!("docker.io/library/{name}:{tag}"),
    }
}

impl ImageBuilder {
    /// An empty image called `reference`.
    pub fn new(reference: &str) -> Self {
        let config = json!({"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]});
        Self { reference: canonical(reference), entries: BTreeMap::new(), config }
    }

    /// A directory; those above a path exist without being named, owned by root with mode 0755.
    #[must_use]
    pub fn directory(mut self, path: impl AsRef<Path>, mode: u32, owner: u64) -> Self {
        self.put(path.as_ref(), Item { mode, owner, content: Content::Directory });
        self
    }

    /// A file of root's.
    #[must_use]
    pub fn file(mut self, path: impl AsRef<Path>, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        self.put(path.as_ref(), Item { mode, owner: 0, content: Content::File(bytes.into()) });
        self
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(mut self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        let content = Content::Link(target.as_ref().to_owned());
        self.put(path.as_ref(), Item { mode: 0o777, owner: 0, content });
        self
    }

    /// A copy of a file of the host, its permissions kept; links are followed.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn copy(self, path: impl AsRef<Path>, source: &Path) -> Result<Self, BuildError> {
        let failed = |error| BuildError::Read { path: source.to_owned(), source: error };
        let bytes = fs::read(source).map_err(failed)?;
        let mode = fs::metadata(source).map_err(failed)?.permissions().mode() & 0o7777;
        Ok(self.file(path, mode, bytes))
    }

    /// What runs: the program and its first arguments.
    #[must_use]
    pub fn entrypoint(self, argv: &[&str]) -> Self {
        self.configure("Entrypoint", json!(argv))
    }

    /// What runs where a pod names nothing else.
    #[must_use]
    pub fn command(self, argv: &[&str]) -> Self {
        self.configure("Cmd", json!(argv))
    }

    /// As whom it runs, `uid` or `uid:gid`.
    #[must_use]
    pub fn user(self, user: &str) -> Self {
        self.configure("User", json!(user))
    }

    /// Where it runs.
    #[must_use]
    pub fn working_directory(self, path: &str) -> Self {
        self.configure("WorkingDir", json!(path))
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// When an entry cannot be added or the archive cannot be written; `archive` is then as before.
    pub fn write(&self, archive: &Path) -> Result<Image, BuildError> {
        let layer = self.layer()?;
        let layer_digest = sha256(&layer);
        let config = to_json(&json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
        }));
        let config_digest = sha256(&config);
        let manifest = to_json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor(CONFIG_TYPE, &config_digest, config.len()),
            "layers": [descriptor(LAYER_TYPE, &layer_digest, layer.len())],
        }));
        let manifest_digest = sha256(&manifest);
        let mut entry = descriptor(MANIFEST_TYPE, &manifest_digest, manifest.len());
        entry["annotations"] = json!({"io.containerd.image.name": self.reference});
        let index = to_json(&json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]}));
        let docker = to_json(&json!([{
            "Config": blob(&config_digest),
            "RepoTags": [self.reference],
            "Layers": [blob(&layer_digest)],
        }]));
        let files = [
            ("oci-layout".to_owned(), to_json(&json!({"imageLayoutVersion": "1.0.0"}))),
            ("index.json".to_owned(), index),
            ("manifest.json".to_owned(), docker),
            (blob(&manifest_digest), manifest),
            (blob(&config_digest), config),
            (blob(&layer_digest), layer),
        ];
        write_archive(archive, &files).map_err(|source| BuildError::Write { path: archive.to_owned(), source })?;
        Ok(Image {
            reference: self.reference.clone(),
            digest: format!("sha256:{manifest_digest}"),
            archive: archive.to_owned(),
        })
    }

    fn configure(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    fn put(&mut self, path: &Path, item: Item) {
        let path = path.strip_prefix("/").unwrap_or(path);
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            let directory = Item { mode: 0o755, owner: 0, content: Content::Directory };
            self.entries.entry(above.to_owned()).or_insert(directory);
        }
        self.entries.insert(path.to_owned(), item);
    }

    /// One layer with everything, in the order of the paths, so that a directory comes before what is in it.
    fn layer(&self) -> Result<Vec<u8>, BuildError> {
        let mut layer = tar::Builder::new(Vec::new());
        for (path, item) in &self.entries {
            add(&mut layer, path, item).map_err(|source| BuildError::Layer { path: path.clone(), source })?;
        }
        layer.into_inner().map_err(|source| BuildError::Layer { path: PathBuf::from("/"), source })
    }
}

fn add(layer: &mut tar::Builder<Vec<u8>>, path: &Path, item: &Item) -> io::Result<()> {
    let mut header = header(item.mode, item.owner);
    match &item.content {
        Content::Directory => {
            header.set_entry_type(EntryType::Directory);
            header.set_size(0);
            layer.append_data(&mut header, path, io::empty())
        }
        Content::File(bytes) => {
            header.set_size(bytes.len() as u64);
            layer.append_data(&mut header, path, bytes.as_slice())
        }
        Content::Link(target) => {
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            layer.append_link(&mut header, path, target)
        }
    }
}

/// A header without time: 1970 for every file of every image.
fn header(mode: u32, owner: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mtime(0);
    header
}

fn write_archive(archive: &Path, files: &[(String, Vec<u8>)]) -> io::Result<()> {
    let parent = archive.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let mut file = tempfile::NamedTempFile::new_in(parent)?;
    let mut tar = tar::Builder::new(&mut file);
    for (path, bytes) in files {
        let mut header = header(0o644, 0);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, bytes.as_slice())?;
    }
    tar.into_inner()?.flush()?;
    file.persist(archive)?;
    Ok(())
}

fn descriptor(media_type: &str, digest: &str, size: usize) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

fn to_json(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn sample() -> ImageBuilder {
        ImageBuilder::new("lab/sample:1")
            .file("/usr/bin/program", 0o755, *b"#!")
            .link("/bin", "usr/bin")
            .directory("/data", 0o700, 999)
            .entrypoint(&["/usr/bin/program"])
            .user("999:999")
    }

    fn entries(archive: &[u8]) -> BTreeMap<String, (Vec<u8>, u64, u32)> {
        let mut tar = tar::Archive::new(archive);
        let read = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (path, (bytes, entry.header().uid().unwrap(), entry.header().mode().unwrap()))
        };
        tar.entries().unwrap().map(read).collect()
    }

    #[test]
    fn short_names_are_completed_as_containerd_does() {
        for (short, full) in [
            ("redis", "docker.io/library/redis:latest"),
            ("tideover-agent:dev", "docker.io/library/tideover-agent:dev"),
            ("lab/pause:1", "docker.io/lab/pause:1"),
            ("registry.example:5000/x", "registry.example:5000/x:latest"),
            ("localhost/x:2", "localhost/x:2"),
        ] {
            assert_eq!(canonical(short), full);
        }
    }

    #[test]
    fn the_same_content_gives_the_same_digest() {
        let dir = tempfile::tempdir().unwrap();
        let one = sample().write(&dir.path().join("one.tar")).unwrap();
        let two = sample().write(&dir.path().join("two.tar")).unwrap();
        assert_eq!(one.digest, two.digest);
        assert_eq!(fs::read(one.archive).unwrap(), fs::read(two.archive).unwrap());
        let other = sample().user("0").write(&dir.path().join("three.tar")).unwrap();
        assert_ne!(one.digest, other.digest);
    }

    #[test]
    fn every_digest_in_the_archive_is_that_of_its_blob() {
        let dir = tempfile::tempdir().unwrap();
        let image = sample().write(&dir.path().join("image.tar")).unwrap();
        let files = entries(&fs::read(&image.archive).unwrap());
        for (path, (bytes, ..)) in &files {
            if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(sha256(bytes), digest);
            }
        }
        let index: Value = serde_json::from_slice(&files["index.json"].0).unwrap();
        assert_eq!(index["manifests"][0]["digest"], image.digest);
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "docker.io/lab/sample:1");
    }

    #[test]
    fn directories_owners_and_modes_are_kept() {
        let layer = entries(&sample().layer().unwrap());
        assert_eq!(layer["data"].1, 999);
        assert_eq!(layer["data"].2, 0o700);
        assert_eq!(layer["usr/bin/program"].2, 0o755);
        assert!(layer.contains_key("usr"));
    }
}
