//! The flags that bound what KSMScales may ask for.

use crate::allowed::{Allowed, ImagePattern, NamespacePattern};
use clap::Args;

#[derive(Debug, Args)]
pub(super) struct AllowedArgs {
    /// Namespaces that KSMScales may put pods in: names, prefixes such as team-*, or * for all.
    /// Others are refused by the webhook, and left alone by the controller.
    #[arg(
        long,
        env = "KSM_ALLOWED_NAMESPACES",
        value_name = "NAMESPACE,…",
        value_delimiter = ',',
        default_values_t = Allowed::default().namespaces
    )]
    allowed_namespaces: Vec<NamespacePattern>,
    /// Images that KSMScales may run: repositories without tag, everything below a path such as
    /// registry.example.com/mirror/*, or * for all.
    #[arg(
        long,
        env = "KSM_ALLOWED_IMAGES",
        value_name = "REPOSITORY,…",
        value_delimiter = ',',
        default_values_t = Allowed::default().images
    )]
    allowed_images: Vec<ImagePattern>,
}

impl AllowedArgs {
    pub(super) fn allowed(&self) -> Allowed {
        Allowed { namespaces: self.allowed_namespaces.clone(), images: self.allowed_images.clone() }
    }
}
