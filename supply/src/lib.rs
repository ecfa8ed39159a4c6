//! Where images come from, and how they are moved.
//!
//! - [`Registries::resolve`]: what a registry says of an image, without pulling it: its digest, and what it starts.
//! - [`Registries::pin`] and [`lock`]: which image a name stands for, for every platform, and the file that keeps it.
//! - [`Registries::copy`]: an image for all its platforms from one registry to another.
//! - [`bundle`]: images in one file, for machines without a network. Whoever loads it into a container engine takes a
//!   [`bundle::Bundle`], of which everything has been held against its digest.
//! - [`layout`]: writes images of our own as OCI archives.

pub mod bundle;
mod content;
pub mod credentials;
pub mod docker_config;
mod documents;
pub mod error;
pub mod layout;
pub mod lock;
pub mod platform;
pub mod progress;
mod publish;
pub mod reference;
pub mod registry;
mod retry;

pub use credentials::{Credentials, Login};
pub use docker_config::DockerConfig;
pub use error::RegistryError;
pub use lock::ImageLock;
pub use platform::Platform;
pub use publish::Published;
pub use reference::Reference;
pub use registry::{ImageFacts, Pinned, Registries};
