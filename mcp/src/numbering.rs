//! Requests of several callers over one channel: each goes under a number of ours, and its caller's own id and progress
//! token are put back into what comes for it.

use std::collections::HashMap;

use serde_json::value::RawValue;

use crate::envelope::{Envelope, Params, splice};

/// What has to be replaced in a request, borrowed from it.
#[derive(Debug, Clone, Copy)]
pub struct Marks<'a> {
    id: &'a RawValue,
    progress: Option<&'a RawValue>,
}

impl<'a> Marks<'a> {
    /// `None` for what is no request.
    pub fn of(envelope: &Envelope<'a>) -> Option<Self> {
        let id = envelope.id?;
        Some(Self { id, progress: Params::of(envelope.params).meta().progress_token })
    }

    /// The request under this number; `message` is what the marks were borrowed from.
    pub fn numbered(&self, message: &[u8], number: u64) -> Vec<u8> {
        let ours = number.to_string();
        let id = Some((self.id, ours.as_bytes()));
        let replacements: Vec<(&RawValue, &[u8])> =
            id.into_iter().chain(self.progress.map(|token| (token, ours.as_bytes()))).collect();
        splice(message, &replacements)
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Pending<T> {
    /// The caller's id, raw.
    pub id: String,
    /// The caller's progress token, raw.
    pub progress: Option<String>,
    pub caller: T,
}

/// Requests under way, by their numbers.
#[derive(Debug)]
pub struct Numbered<T> {
    last: u64,
    pending: HashMap<u64, Pending<T>>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self { last: 0, pending: HashMap::new() }
    }
}

impl<T> Numbered<T> {
    /// Its number, which no other request has had before.
    pub fn add(&mut self, marks: &Marks<'_>, caller: T) -> u64 {
        self.last += 1;
        let progress = marks.progress.map(|token| token.get().to_owned());
        self.pending.insert(self.last, Pending { id: marks.id.get().to_owned(), progress, caller });
        self.last
    }

    pub fn get(&self, number: u64) -> Option<&Pending<T>> {
        self.pending.get(&number)
    }

    pub fn remove(&mut self, number: u64) -> Option<Pending<T>> {
        self.pending.remove(&number)
    }

    pub fn len(&self) -> usize {
        self.pending.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub fn callers(&self) -> impl Iterator<Item = &T> {
        self.pending.values().map(|pending| &pending.caller)
    }

    pub fn retain(&mut self, mut wanted: impl FnMut(&T) -> bool) {
        self.pending.retain(|_, pending| wanted(&pending.caller));
    }

    pub fn clear(&mut self) {
        self.pending.clear();
    }

    /// The number of the newest request that its caller knows by this raw id.
    pub fn number_of(&self, id: &str, is_of: impl Fn(&T) -> bool) -> Option<u64> {
        let same = |pending: &Pending<T>| pending.id == id && is_of(&pending.caller);
        self.pending.iter().filter(|(_, pending)| same(pending)).map(|(number, _)| *number).max()
    }

    /// The request that a token, or an id, of the other side names.
    pub fn named(&self, token: &RawValue) -> Option<&Pending<T>> {
        self.pending.get(&number(token)?)
    }
}

/// The number in the place of an id.
pub fn number(id: &RawValue) -> Option<u64> {
    id.get().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_goes_under_a_number_and_is_found_by_it_and_by_its_callers_name() {
        let mut requests = Numbered::default();
        let message = br#"{"id":"a","method":"m","params":{"_meta":{"progressToken":"a"},"x":"a"}}"#;
        let envelope = Envelope::parse(message).unwrap();
        let marks = Marks::of(&envelope).unwrap();
        let (one, two) = (requests.add(&marks, 'x'), requests.add(&marks, 'y'));
        assert_eq!(
            String::from_utf8(marks.numbered(message, two)).unwrap(),
            r#"{"id":2,"method":"m","params":{"_meta":{"progressToken":2},"x":"a"}}"#
        );
        assert_eq!((requests.number_of("\"a\"", |_| true), requests.number_of("\"b\"", |_| true)), (Some(two), None));
        assert_eq!(requests.number_of("\"a\"", |caller| *caller == 'x'), Some(one));
        let token: &RawValue = serde_json::from_str("2").unwrap();
        let named = requests.named(token).unwrap();
        assert_eq!((named.caller, &*named.id, named.progress.as_deref()), ('y', "\"a\"", Some("\"a\"")));
        let theirs: &RawValue = serde_json::from_str("\"2\"").unwrap();
        assert!(requests.named(theirs).is_none(), "what we send is a number and no text");
        requests.remove(two);
        assert_eq!(requests.add(&marks, 'z'), 3, "no number is used twice");
    }
}
