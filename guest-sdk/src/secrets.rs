//! Secrets that the operator granted by name.

/// The text of a secret; `None` if there is none of this name or it is not granted.
pub fn get(name: &str) -> Option<String> {
    crate::platform::secrets::get(name)
}
