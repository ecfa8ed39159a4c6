//! `mcpctl endpoint`: where clients reach a hub.

use crate::admin::client::Admin;
use crate::admin::{HubEndpoint, Name, path};
use crate::args::{Endpoint, EndpointPart, HubChoice};
use crate::error::Error;
use crate::output;

pub(crate) async fn of(admin: &Admin, hub: &HubChoice) -> Result<HubEndpoint, Error> {
    let name = Name { namespace: hub.namespace.namespace.clone(), name: hub.hub.clone() };
    admin.post(path::ENDPOINT, &name).await
}

pub(crate) async fn run(admin: &Admin, args: &Endpoint) -> Result<(), Error> {
    let endpoint = of(admin, &args.hub).await?;
    let token = endpoint.token.as_ref().map(|token| token.expose_secret().to_owned());
    match args.output {
        EndpointPart::Url => output::data(&format!("{}\n", endpoint.url)),
        EndpointPart::Token => match token {
            Some(token) => output::data(&format!("{token}\n")),
            None => Err(Error::Invalid { message: "this hub asks for no token".to_owned(), hint: None }),
        },
        EndpointPart::Json => output::data(&format!("{}\n", serde_json::json!({"url": endpoint.url, "token": token}))),
    }
}
