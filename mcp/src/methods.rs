//! Methods of both eras.

pub const INITIALIZE: &str = "initialize";
pub const INITIALIZED: &str = "notifications/initialized";
pub const DISCOVER: &str = "server/discover";
pub const PING: &str = "ping";
pub const TOOLS_LIST: &str = "tools/list";
pub const TOOLS_CALL: &str = "tools/call";
pub const PROMPTS_LIST: &str = "prompts/list";
pub const PROMPTS_GET: &str = "prompts/get";
pub const RESOURCES_LIST: &str = "resources/list";
pub const RESOURCES_READ: &str = "resources/read";
pub const TEMPLATES_LIST: &str = "resources/templates/list";
pub const RESOURCES_SUBSCRIBE: &str = "resources/subscribe";
pub const RESOURCES_UNSUBSCRIBE: &str = "resources/unsubscribe";
pub const SET_LEVEL: &str = "logging/setLevel";
pub const COMPLETE: &str = "completion/complete";
pub const LISTEN: &str = "subscriptions/listen";
pub const ROOTS_LIST: &str = "roots/list";
pub const ROOTS_CHANGED: &str = "notifications/roots/list_changed";
pub const SAMPLE: &str = "sampling/createMessage";
pub const ELICIT: &str = "elicitation/create";
pub const CANCELLED: &str = "notifications/cancelled";
pub const PROGRESS: &str = "notifications/progress";
pub const MESSAGE: &str = "notifications/message";
pub const RESOURCE_UPDATED: &str = "notifications/resources/updated";
pub const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";
pub const TOOLS_CHANGED: &str = "notifications/tools/list_changed";
pub const PROMPTS_CHANGED: &str = "notifications/prompts/list_changed";
pub const RESOURCES_CHANGED: &str = "notifications/resources/list_changed";

/// The four lists, each with the member of its result that holds the items.
pub const LISTS: [(&str, &str); 4] = [
    (TOOLS_LIST, "tools"),
    (PROMPTS_LIST, "prompts"),
    (RESOURCES_LIST, "resources"),
    (TEMPLATES_LIST, "resourceTemplates"),
];

/// The member of a list result that holds the items.
pub fn list_key(method: &str) -> Option<&'static str> {
    LISTS.iter().find(|(list, _)| *list == method).map(|(_, key)| *key)
}

/// The `list_changed` notification that outdates a list.
pub fn outdated_by(list: &str) -> &'static str {
    match list {
        TOOLS_LIST => TOOLS_CHANGED,
        PROMPTS_LIST => PROMPTS_CHANGED,
        _ => RESOURCES_CHANGED,
    }
}

/// Whether the request makes the server work, as against asking what it is: only these are activity and wake a sleeper.
pub fn is_call(method: &str) -> bool {
    !matches!(method, INITIALIZE | DISCOVER | PING | SET_LEVEL | LISTEN) && list_key(method).is_none()
}
