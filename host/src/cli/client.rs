//! Running hosts as commands reach them: by the addresses of their admin listeners.

use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::admin::{
    ErrorView, HandlerView, MoveBody, MoveView, ParkedView, PauseView, RolledBack, UnparkRequest, Unparked, WhereView,
};

/// How long the host may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The same where it drains what it has in hand before.
const MOVE_TIMEOUT: Duration = Duration::from_secs(600);

/// Where the running host is, or several are.
#[derive(Debug, clap::Args)]
pub struct HostArgs {
    /// The host's admin address, or those of several hosts: `URL,URL`.
    #[arg(
        long,
        global = true,
        env = "TIDEMILL_ADMIN",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:9090"
    )]
    admin: Vec<String>,
    /// The environment variable that holds the host's admin token; several hosts have the same.
    #[arg(long, global = true, value_name = "NAME")]
    token_env: Option<String>,
}

/// Why a command about a running host failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error(
        "no host answers at `{url}` ({cause}); start it with `tidemill run`, or name its admin address with --admin URL \
         (or TIDEMILL_ADMIN); its configuration needs a section [admin]"
    )]
    NoHost {
        /// Where.
        url: String,
        /// What the system said.
        cause: String,
    },
    /// The host has a token and none was sent.
    #[error(
        "the host at `{0}` wants its admin token; put it in an environment variable and name that with --token-env NAME"
    )]
    TokenNeeded(String),
    /// The host has another token.
    #[error("what was sent to the host at `{0}` is not its admin token; correct the variable that --token-env names")]
    WrongToken(String),
    /// The variable is not there.
    #[error("the environment variable `{0}` is not set; set it to the host's admin token, or correct --token-env")]
    TokenNotSet(String),
    /// Something else answers there.
    #[error(
        "what answers at `{url}` is no Tidemill admin endpoint ({what}); correct --admin, it is not ingest's address"
    )]
    NotAdmin {
        /// Where.
        url: String,
        /// What it said.
        what: String,
    },
    /// Several hosts are named where one is meant.
    #[error("`{0}` are several hosts, and this command asks one; name it with --admin URL")]
    OneHost(String),
    /// Some hosts, or some partitions, did not answer.
    #[error("{0}")]
    NotAll(String),
    /// The host says no.
    #[error("{0}")]
    Refused(String),
    /// The answer could not be printed.
    #[error("can't write to standard output: {0}")]
    Output(#[from] std::io::Error),
}

impl HostArgs {
    pub(super) fn new(admin: Vec<String>, token_env: Option<String>) -> Self {
        Self { admin, token_env }
    }

    /// Whether several hosts are named.
    pub(super) fn are_several(&self) -> bool {
        self.admin.len() > 1
    }

    /// The one host that is named.
    pub(super) fn client(self) -> Result<Client, ClientError> {
        let token = self.token()?;
        match &self.admin[..] {
            [url] => Ok(Client::new(url, token)),
            several => Err(ClientError::OneHost(several.join(","))),
        }
    }

    /// Asks each host that is named and joins their answers. Why some have none is told apart; when all have none it is the
    /// first one's error.
    pub(super) fn ask<T>(
        self,
        question: impl Fn(&Client) -> Result<T, ClientError>,
        join: impl Fn(T, T) -> T,
    ) -> Result<(T, Vec<ClientError>), ClientError> {
        let token = self.token()?;
        let (mut joined, mut failed) = (None, Vec::new());
        for url in &self.admin {
            match question(&Client::new(url, token.clone())) {
                Ok(answer) => {
                    joined = Some(match joined.take() {
                        Some(before) => join(before, answer),
                        None => answer,
                    });
                }
                Err(error) => failed.push(error),
            }
        }
        match joined {
            Some(joined) => Ok((joined, failed)),
            None => Err(failed.into_iter().next().expect("there is a default address")),
        }
    }

    fn token(&self) -> Result<Option<String>, ClientError> {
        let read = |name: &String| std::env::var(name).map_err(|_| ClientError::TokenNotSet(name.clone()));
        self.token_env.as_ref().map(read).transpose()
    }
}

/// Talks to a host's admin endpoint.
pub struct Client {
    url: String,
    token: Option<String>,
    http: ureq::Agent,
}

impl Client {
    /// A client for this address; nothing is sent yet.
    pub fn new(url: &str, token: Option<String>) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(ANSWER_TIMEOUT))
            // The host is meant, not something between.
            .proxy(None)
            .build();
        Self { url: url.trim_end_matches('/').to_owned(), token, http: config.into() }
    }

    /// The host's address.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// What runs.
    pub fn list(&self) -> Result<Vec<HandlerView>, ClientError> {
        let request = self.http.get(format!("{}/handlers", self.url));
        self.answer(self.with_token(request).call())
    }

    /// Where a record stands with each handler of the host that reads its topic.
    pub fn whereabouts(&self, topic: &str, partition: i32, offset: i64) -> Result<Vec<WhereView>, ClientError> {
        let request = self.http.get(format!("{}/where/{}/{partition}/{offset}", self.url, escaped(topic)));
        self.answer(self.with_token(request).call())
    }

    /// Goes back to the revision before.
    pub fn roll_back(&self, handler: &str) -> Result<RolledBack, ClientError> {
        let request = self.http.post(format!("{}/handlers/{}/rollback", self.url, escaped(handler)));
        self.answer(self.with_token(request).send_empty())
    }

    /// A handler's parked keys.
    pub fn parked(&self, handler: &str) -> Result<ParkedView, ClientError> {
        let request = self.http.get(format!("{}/handlers/{}/parked", self.url, escaped(handler)));
        self.answer(self.with_token(request).call())
    }

    /// Tries parked keys again.
    pub fn unpark(&self, handler: &str, request: &UnparkRequest) -> Result<Unparked, ClientError> {
        let body = serde_json::to_string(request).expect("a request has text keys");
        let request = self.http.post(format!("{}/handlers/{}/unpark", self.url, escaped(handler)));
        self.answer(self.with_token(request).header("Content-Type", "application/json").send(&body))
    }

    /// Pauses a handler, or lets it go on.
    pub fn pause(&self, handler: &str, paused: bool) -> Result<PauseView, ClientError> {
        let verb = if paused { "pause" } else { "resume" };
        let request = self.http.post(format!("{}/handlers/{}/{verb}", self.url, escaped(handler)));
        self.answer(self.with_token(request).send_empty())
    }

    /// Lets partitions of a handler begin elsewhere.
    pub fn move_offsets(&self, handler: &str, wish: &MoveBody) -> Result<MoveView, ClientError> {
        let request = self.http.post(format!("{}/handlers/{}/offsets", self.url, escaped(handler)));
        let request = request.config().timeout_global(Some(MOVE_TIMEOUT)).build();
        let body = serde_json::to_string(wish).expect("a wish has text keys and no maps");
        self.answer(self.with_token(request).content_type("application/json").send(body))
    }

    fn with_token<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn answer<T: DeserializeOwned>(
        &self,
        result: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T, ClientError> {
        let no_host = |cause: ureq::Error| ClientError::NoHost { url: self.url.clone(), cause: cause.to_string() };
        let mut response = result.map_err(no_host)?;
        let text = response.body_mut().read_to_string().map_err(no_host)?;
        let url = || self.url.clone();
        match response.status().as_u16() {
            200 => serde_json::from_str(&text)
                .map_err(|error| ClientError::NotAdmin { url: url(), what: error.to_string() }),
            401 if self.token.is_none() => Err(ClientError::TokenNeeded(url())),
            401 => Err(ClientError::WrongToken(url())),
            status => Err(match serde_json::from_str::<ErrorView>(&text) {
                Ok(error) if error.code != "no-such-path" => ClientError::Refused(error.detail),
                Ok(_) | Err(_) => ClientError::NotAdmin { url: url(), what: format!("status {status}") },
            }),
        }
    }
}

/// A name as one segment of a path.
fn escaped(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Whether none of the hosts that were asked has failed.
pub(super) fn all_answered(failed: &[ClientError]) -> Result<(), ClientError> {
    match failed {
        [] => Ok(()),
        failed => {
            let texts: Vec<String> = failed.iter().map(ClientError::to_string).collect();
            Err(ClientError::NotAll(format!("not all hosts have answered: {}", texts.join("; "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_for_one_host_names_those_that_are_too_many() {
        let hosts = HostArgs { admin: vec!["http://a".to_owned(), "http://b".to_owned()], token_env: None };
        let refused = hosts.client().map(|_| ()).expect_err("there are two").to_string();
        assert!(refused.contains("`http://a,http://b` are several hosts"), "{refused}");
    }

    #[test]
    fn a_handlers_name_stays_one_segment() {
        assert_eq!(escaped("orders-2"), "orders-2");
        assert_eq!(escaped("a/b é"), "a%2Fb%20%C3%A9");
    }
}
