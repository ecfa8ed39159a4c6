//! What is known of a server, written down for a gateway that has not met it.

use std::sync::Arc;

use mcp_hub_dataplane_api::Era;
use mcp_hub_dataplane_api::gateway::Definitions;
use mcp_hub_mcp::methods::LISTS;
use serde_json::Value;
use serde_json::value::RawValue;

use super::handshake::{Introduction, Item, ItemLists, item};
use super::{Catalog, Upstream};

impl Catalog {
    /// What somebody else learned of the server; empty if it cannot be read.
    pub(super) fn told(definitions: &Definitions) -> Self {
        let Definitions { era, introduction, tools, prompts, resources, resource_templates } = definitions;
        let Ok(result) = serde_json::from_str::<Value>(introduction) else { return Self::default() };
        let versions = match era {
            Era::Legacy => result["protocolVersion"].as_str().into_iter().map(str::to_owned).collect(),
            Era::Modern => result["supportedVersions"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
        };
        let given = [tools, prompts, resources, resource_templates];
        let mut lists: ItemLists = Default::default();
        for ((list, given), (_, key)) in lists.iter_mut().zip(given).zip(LISTS) {
            *list = given.as_deref().and_then(|raw| items(key, raw));
        }
        Self::new(Some(Introduction { era: *era, result, versions }), None, lists)
    }

    /// `None` if nothing is known yet.
    pub(crate) fn definitions(&self) -> Option<Definitions> {
        let introduction = self.introduction.as_ref()?;
        let written = |place: usize| {
            let items: Vec<&str> = self.lists[place].as_ref()?.iter().map(|item| item.raw.as_str()).collect();
            Some(format!("[{}]", items.join(",")))
        };
        Some(Definitions {
            era: introduction.era,
            introduction: introduction.result.to_string(),
            tools: written(0),
            prompts: written(1),
            resources: written(2),
            resource_templates: written(3),
        })
    }
}

impl Upstream {
    /// What a predecessor learned, or else what the configuration tells.
    pub(super) fn first_catalog(
        config: &mcp_hub_dataplane_api::gateway::Upstream,
        predecessor: Option<&Self>,
    ) -> Arc<Catalog> {
        let learned = predecessor.map(Self::catalog).filter(|known| known.introduction.is_some());
        let told = || config.definitions.as_ref().map(|told| Arc::new(Catalog::told(told)));
        learned.or_else(told).unwrap_or_default()
    }
}

fn items(key: &str, raw: &str) -> Option<Vec<Item>> {
    let items: Vec<&RawValue> = serde_json::from_str(raw).ok()?;
    Some(items.into_iter().filter_map(|raw| item(key, raw)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_told_byte_by_byte() {
        let definitions = Definitions {
            era: Era::Legacy,
            introduction: r#"{"protocolVersion":"2025-06-18","capabilities":{"tools":{}}}"#.to_owned(),
            tools: Some(r#"[{"name":"a", "x":1.0},{"name":"b"}]"#.replace(", ", ",")),
            prompts: Some("[]".to_owned()),
            resources: None,
            resource_templates: Some(r#"[{"uriTemplate":"a:{b}"}]"#.to_owned()),
        };
        let catalog = Catalog::told(&definitions);
        assert_eq!(catalog.introduction.as_ref().unwrap().versions, ["2025-06-18"]);
        assert_eq!(catalog.definitions().unwrap(), definitions);
    }

    #[test]
    fn nothing_is_known_of_a_server_that_nobody_met() {
        assert!(Catalog::default().definitions().is_none());
        let broken = Definitions {
            era: Era::Modern,
            introduction: "{".to_owned(),
            tools: None,
            prompts: None,
            resources: None,
            resource_templates: None,
        };
        assert!(Catalog::told(&broken).definitions().is_none());
    }
}
