//! Where images come from.
//!
//! - [`Registries::resolve`]: what a registry says of an image, without pulling it: its digest, and what it starts.
//! - [`layout`]: writes images of our own as OCI archives.

pub mod credentials;
pub mod error;
pub mod layout;
pub mod platform;
pub mod reference;
pub mod registry;

pub use credentials::Credentials;
pub use error::RegistryError;
pub use platform::Platform;
pub use reference::Reference;
pub use registry::{ImageFacts, Registries};
