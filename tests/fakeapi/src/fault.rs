//! Scripted failures.

use crate::request::{Request, Verb};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection breaks before the server has seen the request.
    RequestLost,
    /// The request is carried out; the connection breaks before the answer.
    ResponseLost,
    /// This HTTP status is answered, and nothing done. 409, 410, 429, 500, 503 and 504 have the server's usual reason.
    Answer(u16),
    /// 429 with `Retry-After` in seconds.
    TooManyRequests(u32),
    /// Nothing is done and no answer ever comes.
    Hang,
    /// The request is carried out, and no answer ever comes.
    HangAfter,
}

/// Which requests a [`Fault`] hits. All that is not narrowed down is hit, once.
#[derive(Debug, Clone)]
pub struct When {
    verbs: Option<Vec<Verb>>,
    kind: Option<String>,
    name: Option<String>,
    user_agent: Option<String>,
    skip: u64,
    times: u64,
}

impl When {
    /// Any request.
    pub fn any() -> Self {
        Self { verbs: None, kind: None, name: None, user_agent: None, skip: 0, times: 1 }
    }

    /// Requests that ask for a change.
    pub fn write() -> Self {
        use Verb::{Apply, Create, Delete, DeleteCollection, Patch, Update};
        Self { verbs: Some(vec![Create, Update, Patch, Apply, Delete, DeleteCollection]), ..Self::any() }
    }

    /// Requests with this verb.
    pub fn verb(verb: Verb) -> Self {
        Self { verbs: Some(vec![verb]), ..Self::any() }
    }

    /// Only those for this kind, such as `Secret`.
    #[must_use]
    pub fn kind(mut self, kind: &str) -> Self {
        self.kind = Some(kind.to_owned());
        self
    }

    /// Only those for the object of this name.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Only those of clients whose user agent begins so.
    #[must_use]
    pub fn user_agent(mut self, prefix: &str) -> Self {
        self.user_agent = Some(prefix.to_owned());
        self
    }

    /// Only from the `n`th of them on, counted from 1.
    #[must_use]
    pub fn nth(mut self, n: u64) -> Self {
        self.skip = n.saturating_sub(1);
        self
    }

    /// So many of them.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// All of them, until the faults are cleared.
    #[must_use]
    pub fn always(self) -> Self {
        self.times(u64::MAX)
    }

    fn covers(&self, request: &Request) -> bool {
        self.verbs.as_ref().is_none_or(|verbs| verbs.contains(&request.verb))
            && self.kind.as_ref().is_none_or(|kind| *kind == request.kind.name)
            && self.name.as_ref().is_none_or(|name| request.name.as_ref() == Some(name))
            && self.user_agent.as_ref().is_none_or(|prefix| request.user_agent.starts_with(prefix))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Faults(Vec<(When, Fault)>);

impl Faults {
    pub(crate) fn add(&mut self, when: When, fault: Fault) {
        self.0.push((when, fault));
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Those that have not come to pass yet.
    pub(crate) fn pending(&self) -> usize {
        self.0.iter().filter(|(when, _)| when.times > 0).count()
    }

    /// The fault of this request: the first whose time has come. The others count the request all the same.
    pub(crate) fn next(&mut self, request: &Request) -> Option<Fault> {
        let mut found = None;
        for (when, fault) in &mut self.0 {
            if when.times == 0 || !when.covers(request) {
                continue;
            }
            if when.skip > 0 {
                when.skip -= 1;
            } else if found.is_none() {
                when.times = when.times.saturating_sub(u64::from(when.times != u64::MAX));
                found = Some(*fault);
            }
        }
        found
    }
}
