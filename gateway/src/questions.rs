//! What a server asks of a client in the middle of a call: requests of its own in the legacy era, entries of a result of
//! type `input_required` in the modern one (2026-07-28, "Multi round-trip requests"). Here one becomes the other.

use mcp_hub_mcp::envelope::quoted;
use mcp_hub_mcp::methods;
use mcp_hub_mcp::object::RawObject;
use serde_json::Value;

/// Client capabilities that mean the same in both eras. `tasks` differ, and are not passed on.
const CAPABILITIES: [&str; 5] = ["roots", "sampling", "elicitation", "experimental", "extensions"];
const TASKS_EXTENSION: &str = "io.modelcontextprotocol/tasks";

/// One thing that a server wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    /// How the server knows it: the raw id of a legacy request, the key of a modern one.
    pub(crate) id: String,
    /// How the client is told it: the key of a modern one.
    pub(crate) key: String,
    pub(crate) method: String,
    pub(crate) params: RawObject,
}

/// A modern result that is no answer yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InputRequired {
    pub(crate) questions: Vec<Question>,
    /// Raw.
    pub(crate) state: Option<String>,
}

/// Capabilities of a client of one era as a server of the other is told them.
pub(crate) fn client_capabilities(raw: Option<&str>) -> String {
    let given = raw.and_then(RawObject::parse).unwrap_or_default();
    let mut told = RawObject::default();
    for name in CAPABILITIES {
        let Some(value) = given.get(name) else { continue };
        match (name, RawObject::parse(value)) {
            // A change of the roots has no counterpart.
            ("roots", Some(mut roots)) => {
                roots.remove("listChanged");
                told.set(name, roots.to_string());
            }
            ("extensions", Some(mut extensions)) => {
                extensions.remove(TASKS_EXTENSION);
                told.set(name, extensions.to_string());
            }
            (_, Some(_)) => told.set(name, value),
            (_, None) => {}
        }
    }
    told.to_string()
}

/// Whether a client with these capabilities can be asked that.
pub(crate) fn can_answer(capabilities: Option<&str>, method: &str, params: &RawObject) -> bool {
    let capabilities: Value = capabilities.and_then(|raw| serde_json::from_str(raw).ok()).unwrap_or_default();
    match method {
        methods::ROOTS_LIST => capabilities["roots"].is_object(),
        methods::SAMPLE => {
            let sampling = &capabilities["sampling"];
            let with_tools = params.get("tools").is_some() || params.get("toolChoice").is_some();
            sampling.is_object() && (!with_tools || sampling["tools"].is_object())
        }
        methods::ELICIT => {
            let elicitation = &capabilities["elicitation"];
            let modes = elicitation.as_object();
            match params.get("mode") {
                Some(r#""url""#) => elicitation["url"].is_object(),
                // A client that names no mode means forms (2025-11-25, "Elicitation: Capabilities").
                _ => modes.is_some_and(|modes| modes.is_empty() || modes.contains_key("form")),
            }
        }
        _ => false,
    }
}

impl InputRequired {
    /// `None` for a result of another type.
    pub(crate) fn of(result: &str) -> Option<Self> {
        let object = RawObject::parse(result)?;
        if object.get("resultType") != Some(r#""input_required""#) {
            return None;
        }
        let requests = object.get("inputRequests").and_then(RawObject::parse).unwrap_or_default();
        let questions = requests.members().filter_map(|(key, raw)| Question::of(key, raw)).collect();
        Some(Self { questions, state: object.get("requestState").map(str::to_owned) })
    }

    /// Params with which the call is made again.
    pub(crate) fn retry(&self, params: &mut RawObject, answers: &RawObject) {
        params.remove("inputResponses");
        params.remove("requestState");
        if !self.questions.is_empty() {
            params.set("inputResponses", answers.to_string());
        }
        if let Some(state) = &self.state {
            params.set("requestState", state.clone());
        }
    }
}

impl Question {
    fn of(key: &str, raw: &str) -> Option<Self> {
        let request = RawObject::parse(raw)?;
        let method: String = serde_json::from_str(request.get("method")?).ok()?;
        let mut params = request.get("params").and_then(RawObject::parse).unwrap_or_default();
        if method == methods::ELICIT && params.get("mode") == Some(r#""url""#) {
            // Legacy clients want one; nothing comes of it, as no server says that the interaction is complete.
            params.set_default("elicitationId", &quoted(key));
        }
        Some(Self { id: key.to_owned(), key: key.to_owned(), method, params })
    }

    /// A legacy server's request.
    pub(crate) fn asked(id: &str, key: String, method: &str, mut params: RawObject) -> Self {
        // The modern era knows neither the tasks of its predecessor nor that a URL has been visited.
        params.remove("task");
        params.remove("elicitationId");
        // Nobody tells of progress in answering.
        if let Some(mut meta) = params.get("_meta").and_then(RawObject::parse) {
            meta.remove("progressToken");
            match meta.to_string() {
                empty if empty == "{}" => params.remove("_meta"),
                meta => params.set("_meta", meta),
            }
        }
        Self { id: id.to_owned(), key, method: method.to_owned(), params }
    }
}

/// The result that asks a modern client all this. `state` is sealed.
pub(crate) fn input_required(questions: &[Question], state: &str) -> String {
    let mut requests = RawObject::default();
    for question in questions {
        let request = format!(r#"{{"method":{},"params":{}}}"#, quoted(&question.method), question.params);
        requests.set(&question.key, request);
    }
    format!(r#"{{"resultType":"input_required","inputRequests":{requests},"requestState":{}}}"#, quoted(state))
}

/// A modern client's answers: those that came, each with the server's id of the question, and what is still open.
pub(crate) fn answers(questions: Vec<Question>, responses: &RawObject) -> (Vec<(String, String)>, Vec<Question>) {
    let mut given = Vec::new();
    let mut open = Vec::new();
    for question in questions {
        match responses.get(&question.key).and_then(RawObject::parse) {
            Some(mut answer) => {
                answer.remove("resultType");
                given.push((question.id, answer.to_string()));
            }
            None => open.push(question),
        }
    }
    (given, open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_capabilities_of_both_eras_are_passed_on() {
        let given = r#"{"roots":{"listChanged":true},"sampling":{"tools":{}},"tasks":{"list":{}},"elicitation":{},
            "extensions":{"io.modelcontextprotocol/tasks":{},"a/b":{"x":1.0}}}"#;
        assert_eq!(
            client_capabilities(Some(given)),
            r#"{"roots":{},"sampling":{"tools":{}},"elicitation":{},"extensions":{"a/b":{"x":1.0}}}"#
        );
        assert_eq!(client_capabilities(None), "{}");
        assert_eq!(client_capabilities(Some("7")), "{}");
    }

    #[test]
    fn a_client_is_asked_only_what_it_says_it_can_answer() {
        let all = r#"{"roots":{},"sampling":{},"elicitation":{"url":{}}}"#;
        for (capabilities, method, params, can) in [
            (Some(all), "roots/list", "{}", true),
            (Some(all), "sampling/createMessage", "{}", true),
            (Some(all), "sampling/createMessage", r#"{"tools":[]}"#, false),
            (Some(all), "elicitation/create", r#"{"mode":"url"}"#, true),
            (Some(all), "elicitation/create", r#"{"mode":"form"}"#, false),
            (Some(all), "elicitation/create", "{}", false),
            (Some(all), "other/thing", "{}", false),
            (Some(r#"{"elicitation":{}}"#), "elicitation/create", "{}", true),
            (Some(r#"{"elicitation":{}}"#), "elicitation/create", r#"{"mode":"url"}"#, false),
            (Some(r#"{"elicitation":{}}"#), "roots/list", "{}", false),
            (None, "elicitation/create", "{}", false),
        ] {
            let params = RawObject::parse(params).unwrap();
            assert_eq!(can_answer(capabilities, method, &params), can, "{capabilities:?} {method} {params}");
        }
    }

    #[test]
    fn what_a_modern_server_asks_is_read_and_what_came_is_sent_back_under_its_keys() {
        let result = r#"{"resultType":"input_required","inputRequests":{"a b":{"method":"elicitation/create","params":
            {"mode":"url","url":"u"}},"c":{"method":"roots/list"}},"requestState":"s\"t"}"#;
        let wanted = InputRequired::of(result).unwrap();
        assert_eq!(wanted.questions[0].params.to_string(), r#"{"mode":"url","url":"u","elicitationId":"a b"}"#);
        assert_eq!((&*wanted.questions[1].key, &*wanted.questions[1].method), ("c", "roots/list"));
        let mut params = RawObject::parse(r#"{"name":"t","requestState":"old"}"#).unwrap();
        wanted.retry(&mut params, &RawObject::parse(r#"{"c":{"roots":[]}}"#).unwrap());
        assert_eq!(params.to_string(), r#"{"name":"t","inputResponses":{"c":{"roots":[]}},"requestState":"s\"t"}"#);
        assert_eq!(InputRequired::of(r#"{"resultType":"complete"}"#), None);
        assert_eq!(InputRequired::of(r#"{"content":[]}"#), None);
    }

    #[test]
    fn what_only_the_legacy_era_knows_is_left_out_of_a_question() {
        let asked = |params: &str| Question::asked("1", "q1".to_owned(), "a", RawObject::parse(params).unwrap()).params;
        let params = r#"{"_meta":{"progressToken":1,"a/b":2},"task":{},"elicitationId":"e","x":1.0}"#;
        assert_eq!(asked(params).to_string(), r#"{"_meta":{"a/b":2},"x":1.0}"#);
        assert_eq!(asked(r#"{"_meta":{"progressToken":1}}"#).to_string(), "{}");
    }

    #[test]
    fn what_is_not_answered_stays_open() {
        let question = |id: &str, key: &str| Question::asked(id, key.to_owned(), "roots/list", RawObject::default());
        let asked = vec![question("1", "q1"), question(r#""x""#, "q2"), question("2", "q3")];
        let responses = RawObject::parse(r#"{"q2":{"roots":[],"resultType":"complete"},"q3":7,"q9":{}}"#).unwrap();
        let (given, open) = answers(asked.clone(), &responses);
        assert_eq!(given, [(r#""x""#.to_owned(), r#"{"roots":[]}"#.to_owned())]);
        assert_eq!(open, [asked[0].clone(), asked[2].clone()]);
        assert_eq!(
            input_required(&asked[..1], "s"),
            r#"{"resultType":"input_required","inputRequests":{"q1":{"method":"roots/list","params":{}}},"requestState":"s"}"#
        );
    }
}
