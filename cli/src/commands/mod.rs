//! One file a command, or a pair that undo each other.

pub(crate) mod add;
pub(crate) mod apply;
pub(crate) mod bundle;
pub(crate) mod call;
pub(crate) mod down;
pub(crate) mod endpoint;
pub(crate) mod gc;
pub(crate) mod generate;
pub(crate) mod get;
pub(crate) mod import;
pub(crate) mod lifecycle;
pub(crate) mod lock_images;
pub(crate) mod logs;
pub(crate) mod plan;
pub(crate) mod publish_images;
pub(crate) mod pull_images;
pub(crate) mod reference;
pub(crate) mod secret;
pub(crate) mod status;
pub(crate) mod stdio;
pub(crate) mod tools;
pub(crate) mod up;
pub(crate) mod version;
pub(crate) mod wait;
