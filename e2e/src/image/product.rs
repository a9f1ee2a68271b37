//! Tideover's own images, built from the work tree.

use crate::image::build::Image;
use crate::progress::Progress;

/// Why there are no images.
#[derive(Debug, thiserror::Error)]
pub enum ProductError {
    /// Nothing was built yet.
    #[error("Tideover's images are not built: run `lab image build`")]
    NotBuilt,
}

/// Builds them.
///
/// # Errors
/// Names the step.
pub fn build(_progress: &Progress) -> Result<Vec<Image>, ProductError> {
    Err(ProductError::NotBuilt)
}

/// Those that were built last.
///
/// # Errors
/// When none were.
pub fn built() -> Result<Vec<Image>, ProductError> {
    Err(ProductError::NotBuilt)
}
