//! What breaks a rule.

/// Findings, each with its place.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<String>);

impl Findings {
    /// Adds what was found at `place`, a file with a line where it has one.
    pub(crate) fn add(&mut self, place: &str, what: impl AsRef<str>) {
        self.0.push(format!("{place}: {}", what.as_ref()));
    }

    pub(crate) fn all(&self) -> &[String] {
        &self.0
    }
}
