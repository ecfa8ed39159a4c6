//! Where a test cuts the daemon off: before each thing it does to files and processes.

use std::fmt;

use super::ProcessError;

/// Empty unless feature `testing` puts a hook in.
#[derive(Clone, Default)]
pub(super) struct Seam {
    #[cfg(feature = "testing")]
    hook: Option<Hook>,
}

/// Told what is about to be done; `false` cuts the daemon off.
#[cfg(feature = "testing")]
pub type Hook = std::sync::Arc<dyn Fn(&'static str) -> bool + Send + Sync>;

impl Seam {
    #[cfg(feature = "testing")]
    pub(super) fn new(hook: Hook) -> Self {
        Self { hook: Some(hook) }
    }

    /// Called right before `deed` is done.
    #[cfg(feature = "testing")]
    pub(super) fn before(&self, deed: &'static str) -> Result<(), ProcessError> {
        match &self.hook {
            Some(hook) if !hook(deed) => Err(ProcessError::CutOff { deed }),
            Some(_) | None => Ok(()),
        }
    }

    #[cfg(not(feature = "testing"))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "only tests put a hook in")]
    pub(super) fn before(&self, _deed: &'static str) -> Result<(), ProcessError> {
        Ok(())
    }
}

impl fmt::Debug for Seam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seam").finish_non_exhaustive()
    }
}
