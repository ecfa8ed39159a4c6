//! Lists, calls, reads and gets, which both eras ask for the same way.

use http::{Response, StatusCode};
use mcp_hub_dataplane_api::Era;
use mcp_hub_mcp::envelope::{Envelope, Params, quoted, splice, string, write_result};
use mcp_hub_mcp::error as code;
use mcp_hub_mcp::methods::{self, LISTS};
use mcp_hub_mcp::object::RawObject;
use serde_json::value::RawValue;

use super::{Client, Scope};
use crate::aggregate::{items_of, own_tool, renamed, shown_name};
use crate::body::{Body, error, json};
use crate::forward::{Call, forward};
use crate::upstream::{Owner, Upstream};
use crate::{translate, uris};

/// A request of either era. `None` if the method is none of those that both eras know.
pub(super) async fn answer(client: &Client, era: Era, owner: Owner, envelope: &Envelope<'_>) -> Option<Response<Body>> {
    let method = envelope.method();
    if let Some(place) = LISTS.iter().position(|(list, _)| *list == method) {
        return Some(list(client, era, owner, envelope, place).await);
    }
    match &*method {
        methods::TOOLS_CALL | methods::PROMPTS_GET | methods::RESOURCES_READ => {
            Some(call(client, era, owner, envelope).await)
        }
        methods::COMPLETE => match &client.scope {
            Scope::Server(server) => {
                Some(forward(&client.inner, passed_on(client, era, owner, envelope, server)).await)
            }
            // Not advertised there.
            Scope::Aggregate => None,
        },
        _ => None,
    }
}

/// The request as the client wrote it, for this server.
pub(super) fn passed_on(client: &Client, era: Era, owner: Owner, envelope: &Envelope<'_>, server: &str) -> Call {
    let served = client.inner.served();
    let alone = served.upstreams.get(server).is_some_and(|watched| !watched.upstream.is_shared());
    Call {
        server: server.to_owned(),
        client_era: era,
        method: envelope.method().into_owned(),
        id: raw_id(envelope),
        params: envelope.params.map(|params| params.get().to_owned()),
        name: None,
        owner,
        outward: false,
        interactive: alone && client.scope != Scope::Aggregate,
    }
}

fn raw_id(envelope: &Envelope<'_>) -> String {
    envelope.id.map_or("null", RawValue::get).to_owned()
}

async fn list(client: &Client, era: Era, owner: Owner, envelope: &Envelope<'_>, place: usize) -> Response<Body> {
    let served = client.inner.served();
    let (method, key) = LISTS[place];
    let items = match &client.scope {
        Scope::Aggregate => served.lists.merged(&served, place).await.items.clone(),
        Scope::Server(server) => {
            let Some(watched) = served.upstreams.get(server) else {
                return error(StatusCode::NOT_FOUND, Some(&raw_id(envelope)), code::INVALID_PARAMS, "no such server");
            };
            let upstream = &watched.upstream;
            // Without rules the server answers for itself, page by page.
            if upstream.is_ready() && (key != "tools" || has_no_rules(upstream)) {
                return forward(&client.inner, passed_on(client, era, owner, envelope, server)).await;
            }
            upstream.settle().await;
            let items = if upstream.is_listed() { items_of(upstream, place) } else { Vec::new() };
            items.iter().map(|item| renamed(key, item, &shown_name(upstream, key, &item.key), None)).collect()
        }
    };
    let mut result = RawObject::default();
    result.set(key, format!("[{}]", items.join(",")));
    if era == Era::Modern {
        translate::complete(method, &mut result);
    }
    json(write_result(&raw_id(envelope), &result.to_string()))
}

fn has_no_rules(upstream: &Upstream) -> bool {
    let rules = &upstream.config.tools;
    rules.allow.is_empty() && rules.deny.is_empty() && rules.rename.is_empty()
}

async fn call(client: &Client, era: Era, owner: Owner, envelope: &Envelope<'_>) -> Response<Body> {
    let id = raw_id(envelope);
    let method = envelope.method();
    let params = Params::of(envelope.params);
    let (member, place) = match &*method {
        methods::TOOLS_CALL => (params.name, 0),
        methods::PROMPTS_GET => (params.name, 1),
        _ => (params.uri, 2),
    };
    let refused = |message: &str| error(StatusCode::OK, Some(&id), code::INVALID_PARAMS, message);
    let (Some(raw), Some(asked), Some(whole)) = (member, member.and_then(string), envelope.params) else {
        return refused("the request does not say what it asks for");
    };
    let Some((server, own)) = route(client, place, &asked).await else {
        let what = ["tool", "prompt", "resource"][place];
        let number = match (place, era) {
            (2, Era::Legacy) => code::RESOURCE_NOT_FOUND_LEGACY,
            _ => code::INVALID_PARAMS,
        };
        return error(StatusCode::OK, Some(&id), number, &format!("there is no {what} `{asked}`"));
    };
    let mut call = passed_on(client, era, owner, envelope, &server);
    if own != asked {
        let spliced = splice(whole.get().as_bytes(), &mut [(raw, quoted(&own).as_bytes())]);
        call.params = Some(String::from_utf8_lossy(&spliced).into_owned());
    }
    call.name = Some(own);
    call.outward = client.scope == Scope::Aggregate;
    forward(&client.inner, call).await
}

/// Server and own name of what a client asks for.
async fn route(client: &Client, place: usize, asked: &str) -> Option<(String, String)> {
    let served = client.inner.served();
    match (&client.scope, LISTS[place].1) {
        (Scope::Aggregate, "resources") => {
            // Also those that no list names: templates stand for more than can be listed.
            let (server, own) = uris::inward(asked)?;
            served.upstreams.contains_key(server).then(|| (server.to_owned(), own))
        }
        (Scope::Aggregate, _) => served.lists.merged(&served, place).await.routes.get(asked).cloned(),
        (Scope::Server(server), "tools") => {
            let upstream = &served.upstreams.get(server)?.upstream;
            Some((server.clone(), own_tool(upstream, asked)?))
        }
        (Scope::Server(server), _) => Some((server.clone(), asked.to_owned())),
    }
}
