//! What a form cannot say: all of it at once, each with the object and the field.

use std::fmt;

use mcp_hub_crds::ResourceKey;
use mcp_hub_reconcile::lower::Unsupported;

/// One field of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub object: ResourceKey,
    pub because: Unsupported,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.because)?;
        match &self.because.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Manifests that a form cannot honour as they are written; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Refused(pub Vec<Refusal>);

/// Takes refusals of one object after the other.
#[derive(Debug)]
pub(crate) struct Ledger {
    form: &'static str,
    refusals: Vec<Refusal>,
}

impl Ledger {
    /// `form`: the word for what is written, as in "compose cannot honour …".
    pub(crate) fn new(form: &'static str) -> Self {
        Self { form, refusals: Vec::new() }
    }

    pub(crate) fn of(&mut self, object: ResourceKey) -> Page<'_> {
        Page { ledger: self, object }
    }

    pub(crate) fn conclude(self) -> Result<(), Refused> {
        if self.refusals.is_empty() { Ok(()) } else { Err(Refused(self.refusals)) }
    }
}

/// The refusals of one object.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    ledger: &'a mut Ledger,
    object: ResourceKey,
}

impl Page<'_> {
    pub(crate) fn refuse(&mut self, field: impl Into<String>, message: impl Into<String>, hint: Option<&str>) {
        let because = Unsupported {
            runtime: self.ledger.form.to_owned(),
            field: field.into(),
            message: message.into(),
            hint: hint.map(str::to_owned),
        };
        self.because(because);
    }

    pub(crate) fn because(&mut self, because: Unsupported) {
        self.ledger.refusals.push(Refusal { object: self.object.clone(), because });
    }

    /// Fields that no release builds yet.
    pub(crate) fn unimplemented(&mut self, fields: Vec<&'static str>) {
        for field in fields {
            self.refuse(field, "it is not implemented yet", Some("leave it out"));
        }
    }
}
