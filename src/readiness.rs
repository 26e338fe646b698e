//! Whether the process is ready, and if not, what it waits for.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Everything that has to be so for the process to be ready. Clones share one state.
///
/// What is waited for with [`Readiness::wait_for`] happens once and stays so: a watch that breaks
/// and is restored does not make the process unready, since it works on with what it knows. What
/// is asked for with [`Readiness::require`] may be lost again, such as a valid certificate.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Vec<Wait>>>);

#[derive(Debug)]
struct Wait {
    name: &'static str,
    done: bool,
    trouble: Option<String>,
}

/// One thing that has to be so at any time.
#[derive(Clone, Debug)]
pub struct Requirement {
    all: Readiness,
    at: usize,
}

/// One thing that has to happen.
#[derive(Clone, Debug)]
pub struct ReadinessHandle {
    all: Readiness,
    at: usize,
}

impl Readiness {
    /// Adds a thing to wait for.
    #[must_use]
    pub fn wait_for(&self, name: &'static str) -> ReadinessHandle {
        ReadinessHandle { all: self.clone(), at: self.add(name) }
    }

    /// Adds a thing that has to be so at any time. It is not, until [`Requirement::met`].
    #[must_use]
    pub fn require(&self, name: &'static str) -> Requirement {
        Requirement { all: self.clone(), at: self.add(name) }
    }

    fn add(&self, name: &'static str) -> usize {
        let mut waits = self.lock();
        waits.push(Wait { name, done: false, trouble: None });
        waits.len() - 1
    }

    /// `Ok` when nothing is waited for any more, else one line for each thing that is.
    ///
    /// # Errors
    /// The text for `/readyz`.
    pub fn check(&self) -> Result<(), String> {
        let mut text = String::new();
        for wait in self.lock().iter().filter(|wait| !wait.done) {
            let trouble = wait.trouble.as_deref().unwrap_or("not complete yet");
            // Writing to a string cannot fail.
            let _ = writeln!(text, "waiting for {}: {trouble}", wait.name);
        }
        if text.is_empty() { Ok(()) } else { Err(text) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Wait>> {
        // The list is whole after every statement, so a panic elsewhere cannot have broken it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadinessHandle {
    /// It has happened.
    pub fn done(&self) {
        if let Some(wait) = self.all.lock().get_mut(self.at) {
            wait.done = true;
        }
    }

    /// It was tried and failed; it is tried again.
    pub fn failed(&self, why: &dyn std::fmt::Display) {
        if let Some(wait) = self.all.lock().get_mut(self.at) {
            wait.trouble = Some(why.to_string());
        }
    }
}

impl Requirement {
    /// It is so.
    pub fn met(&self) {
        if let Some(wait) = self.all.lock().get_mut(self.at) {
            wait.done = true;
        }
    }

    /// It is not so, or no longer.
    pub fn unmet(&self, why: &dyn std::fmt::Display) {
        if let Some(wait) = self.all.lock().get_mut(self.at) {
            (wait.done, wait.trouble) = (false, Some(why.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Readiness;

    #[test]
    fn w7_a_requirement_that_is_lost_makes_the_process_unready_again() {
        let readiness = Readiness::default();
        let certificate = readiness.require("a certificate");
        assert!(readiness.check().is_err());
        certificate.met();
        assert_eq!(readiness.check(), Ok(()));
        certificate.unmet(&"expired");
        assert_eq!(readiness.check().unwrap_err(), "waiting for a certificate: expired\n");
    }

    #[test]
    fn o1_readiness_says_what_it_waits_for_and_does_not_go_back() {
        let readiness = Readiness::default();
        let (nodes, pods) = (readiness.wait_for("nodes"), readiness.wait_for("pods"));
        nodes.failed(&"403");
        assert_eq!(
            readiness.check().unwrap_err(),
            "waiting for nodes: 403\nwaiting for pods: not complete yet\n"
        );
        nodes.done();
        pods.done();
        assert_eq!(readiness.check(), Ok(()));
        nodes.failed(&"watch closed");
        assert_eq!(readiness.check(), Ok(()));
    }
}
