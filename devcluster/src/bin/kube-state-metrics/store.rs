//! The text of every object of a resource.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::families::{Object, Resource};

/// By UID, the lines of each family.
type Lines = HashMap<String, Vec<String>>;

/// What is served of a resource, in one namespace or in all.
pub(crate) struct Store {
    pub(crate) resource: Resource,
    pub(crate) namespace: Option<String>,
    objects: Mutex<Lines>,
}

impl Store {
    pub(crate) fn new(resource: Resource, namespace: Option<String>) -> Self {
        Self { resource, namespace, objects: Mutex::default() }
    }

    pub(crate) fn insert(&self, object: &Object) {
        self.lock().extend([self.lines(object)]);
    }

    pub(crate) fn remove(&self, object: &Object) {
        self.lock().remove(object.meta.uid.as_deref().unwrap_or_default());
    }

    /// At once. Everything goes first and comes back one by one in the real one, which would be a
    /// fault that nobody asked for (`emptied` is).
    pub(crate) fn replace(&self, objects: &[Object]) {
        let lines = objects.iter().map(|object| self.lines(object)).collect();
        *self.lock() = lines;
    }

    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    /// The object's UID and lines.
    fn lines(&self, object: &Object) -> (String, Vec<String>) {
        let families = self.resource.families();
        let lines = families.iter().map(|family| family.lines(self.resource, object)).collect();
        (object.meta.uid.clone().unwrap_or_default(), lines)
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stores of one resource, and ghosts beside them, have to say. Headers stand only above
/// something.
pub(crate) fn write(stores: &[Store], ghosts: &[Object], text: &mut String) {
    let Some(resource) = stores.first().map(|store| store.resource) else { return };
    let locked: Vec<_> = stores.iter().map(Store::lock).collect();
    let is_empty = ghosts.is_empty() && locked.iter().all(|objects| objects.is_empty());
    for (index, family) in resource.families().iter().enumerate() {
        if !is_empty {
            text.push_str(&family.header());
        }
        for lines in locked.iter().flat_map(|objects| objects.values()) {
            text.push_str(&lines[index]);
        }
        for ghost in ghosts {
            text.push_str(&family.lines(resource, ghost));
        }
    }
}
