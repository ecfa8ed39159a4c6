//! `mcpctl endpoint`: where clients reach a hub.

use crate::args::{Endpoint, EndpointPart};
use crate::error::Error;
use crate::output;
use crate::target::Target;

pub(crate) async fn run(target: &dyn Target, args: &Endpoint) -> Result<(), Error> {
    let endpoint = target.endpoint(&target.hub(&args.hub)).await?;
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
