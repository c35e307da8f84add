//! A bot with the AWS SDK for Rust, over the relay's Unix socket.
//!
//! ```sh
//! RELAY_SOCKET=/run/connect-relay/relay.sock PARTICIPANT_TOKEN=… CONTACT_ID=… cargo run
//! ```

use std::env;
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use aws_sdk_connectparticipant::config::{BehaviorVersion, Region};
use aws_sdk_connectparticipant::types::ConnectionType;
use aws_sdk_connectparticipant::{Client, Config};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use http::Uri;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;

/// Dials the socket, whatever the URL's host is.
#[derive(Clone, Debug)]
struct Dial(PathBuf);

impl tower_service::Service<Uri> for Dial {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async { UnixStream::connect(path).await.map(TokioIo::new) })
    }
}

/// The SDK's way to send a request.
#[derive(Clone, Debug)]
struct OverSocket(legacy::Client<Dial, SdkBody>);

impl HttpConnector for OverSocket {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            let response = client.request(request).await.map_err(|error| ConnectorError::io(error.into()))?;
            let response = response.map(SdkBody::from_body_1_x);
            HttpResponse::try_from(response).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let socket = env::var("RELAY_SOCKET").unwrap_or_else(|_| "/run/connect-relay/relay.sock".into());
    let dial = Dial(socket.into());
    let connector = OverSocket(legacy::Client::builder(TokioExecutor::new()).build(dial));
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-2"))
        .endpoint_url("http://relay") // the host is not used
        .allow_no_auth() // the service needs no signature
        .http_client(http_client_fn(move |_, _| SharedHttpConnector::new(connector.clone())))
        .build();
    let client = Client::from_conf(config);

    let conversation = format!("{}/bot", env::var("CONTACT_ID")?);
    let connection = client
        .create_participant_connection()
        .participant_token(env::var("PARTICIPANT_TOKEN")?)
        .r#type(ConnectionType::ConnectionCredentials)
        .connect_participant(true)
        .send()
        .await?;
    let token = connection.connection_credentials().and_then(|given| given.connection_token()).ok_or("no token")?;
    for (client_token, content) in [("greeting-1", "Hello!"), ("farewell-1", "Goodbye!")] {
        let conversation = conversation.clone();
        let reply = client
            .send_message()
            .connection_token(token)
            .content_type("text/plain")
            .content(content)
            .client_token(client_token)
            .customize()
            .mutate_request(move |request| {
                request.headers_mut().insert("relay-conversation", conversation.clone());
            })
            .send()
            .await?;
        println!("{client_token} {}", reply.id().unwrap_or("queued")); // no Id while it is queued
    }
    let end = client.disconnect_participant().connection_token(token).customize();
    // It waits for its turn: the farewell is not cut off.
    end.mutate_request(move |request| {
        request.headers_mut().insert("relay-conversation", conversation.clone());
    })
    .send()
    .await?;
    Ok(())
}
