//! Puts images on nodes.
//!
//! Owns the question whether a node already has an image: by the digest of its manifest, never by its name.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use crate::command::{self, CommandError};
use crate::image::build::Image;
use crate::lab::Node;

const NAMESPACE: &str = "k8s.io";

/// Why a node did not get an image.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// containerd did not answer or refused.
    #[error("{action} on {node}")]
    Containerd {
        /// What was asked.
        action: String,
        /// The node.
        node: String,
        /// With its message.
        #[source]
        source: CommandError,
    },
    /// The archive could not be opened.
    #[error("open the image {path}")]
    Open {
        /// The archive.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

/// Imports those of `images` that `node` lacks and returns how many they were.
///
/// # Errors
/// With containerd's message.
pub fn import(node: &Node, images: &[Image]) -> Result<usize, ImportError> {
    let failed =
        |action: String| move |source| ImportError::Containerd { action, node: node.name().to_owned(), source };
    let listing = command::read(&mut node.command(["ctr", "-n", NAMESPACE, "images", "list"]))
        .map_err(failed("list images".to_owned()))?;
    let mut imported = 0;
    for image in images.iter().filter(|image| !has(&listing, image)) {
        import_archive(node, &image.archive)?;
        imported += 1;
    }
    Ok(imported)
}

/// Imports whatever images are in `archive`, whether `node` has them or not.
///
/// # Errors
/// With containerd's message.
pub fn import_archive(node: &Node, archive: &std::path::Path) -> Result<(), ImportError> {
    let failed = |source| ImportError::Containerd {
        action: format!("import {}", archive.display()),
        node: node.name().to_owned(),
        source,
    };
    let file = File::open(archive).map_err(|source| ImportError::Open { path: archive.to_owned(), source })?;
    let mut import = node.command(["ctr", "-n", NAMESPACE, "images", "import", "-"]);
    command::run(import.stdin(file)).map(drop).map_err(failed)
}

/// `listing` is `REF TYPE DIGEST ...`, one image a line.
fn has(listing: &str, image: &Image) -> bool {
    listing.lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        words.next() == Some(&image.reference) && words.nth(1) == Some(&image.digest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_the_same_name_but_other_content_is_not_the_same() {
        let listing = "REF TYPE DIGEST SIZE\ndocker.io/lab/redis:1 application/x sha256:aa 5 MiB linux/amd64 -\n";
        let image = |digest: &str| Image {
            reference: "docker.io/lab/redis:1".into(),
            digest: digest.into(),
            archive: PathBuf::new(),
        };
        assert!(has(listing, &image("sha256:aa")));
        assert!(!has(listing, &image("sha256:bb")));
    }
}
