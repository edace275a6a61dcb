//! `tidemill guests`: what runs in a host, and going back to the revision before.

use std::fmt::Write as _;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::admin::{
    ErrorView, HandlerView, MoveBody, MoveView, ParkedView, PartitionView, PauseView, RolledBack, StoppedView,
    UnparkRequest, Unparked, WhereView,
};

/// How long the host may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The same where it drains what it has in hand before.
const MOVE_TIMEOUT: Duration = Duration::from_secs(600);

/// Flags of `tidemill guests`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    host: HostArgs,
    #[command(subcommand)]
    command: Command,
}

/// Flags of `tidemill pause` and `tidemill resume`.
#[derive(Debug, clap::Args)]
pub struct HandlerArgs {
    #[command(flatten)]
    host: HostArgs,
    /// The handler.
    handler: String,
}

/// Where the running host is, or several are.
#[derive(Debug, clap::Args)]
pub struct HostArgs {
    /// The host's admin address. `where`, `park list` and `unpark` take those of several hosts: `URL,URL`.
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

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Shows each handler: its revision, its partitions, how far it is behind.
    List {
        /// Prints what the host answers, as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Goes back to the revision before the live one. The file that was live is not loaded again by itself.
    Rollback {
        /// The handler.
        handler: String,
    },
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

/// Does what the command says and prints the answer.
pub fn run(args: Args) -> Result<(), ClientError> {
    let client = args.host.client()?;
    let text = match args.command {
        Command::List { json: false } => table(&client.list()?),
        Command::List { json: true } => json(&client.list()?),
        Command::Rollback { handler } => {
            let RolledBack { revision, set_aside, not_kept } = client.roll_back(&handler)?;
            let (live, aside) = (short(&revision), short(&set_aside));
            let kept = match not_kept {
                None => ", also after a restart".to_owned(),
                Some(error) => {
                    format!(", but not after a restart: the host's folder `state` can't be written ({error})")
                }
            };
            format!("{handler}: {live} is live again; {aside} is set aside until another file comes{kept}")
        }
    };
    Ok(super::say(&text)?)
}

/// Pauses a handler, or lets it go on, and says so.
pub fn pause(args: HandlerArgs, paused: bool) -> Result<(), ClientError> {
    let PauseView { handler, paused } = args.host.client()?.pause(&args.handler, paused)?;
    let text = if paused {
        format!("{handler}: paused, also after a restart; `tidemill resume {handler}` lets it go on")
    } else {
        format!("{handler}: goes on")
    };
    Ok(super::say(&text)?)
}

impl HostArgs {
    pub(super) fn new(admin: String, token_env: Option<String>) -> Self {
        Self { admin: vec![admin], token_env }
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

fn json(handlers: &[HandlerView]) -> String {
    serde_json::to_string_pretty(handlers).expect("views have text keys and no maps")
}

/// The handlers as aligned columns, with what is wrong below each.
fn table(handlers: &[HandlerView]) -> String {
    if handlers.is_empty() {
        return "no handlers: put a folder with a handler.toml and a component into the handlers' folder".to_owned();
    }
    let mut rows = vec![
        ["HANDLER", "STATE", "REVISION", "LIVE SINCE", "GROUP", "TOPICS", "PARTITIONS", "LAG", "IN FLIGHT"]
            .map(str::to_owned),
    ];
    rows.extend(handlers.iter().map(row));
    let mut text = String::new();
    for (at, line) in super::text::columns(&rows).iter().enumerate() {
        let below = at.checked_sub(1).map(|at| &handlers[at]);
        // Writing to a `String` never fails.
        writeln!(text, "{line}").ok();
        for line in below.into_iter().flat_map(notes) {
            writeln!(text, "  {line}").ok();
        }
    }
    text.truncate(text.trim_end().len());
    text
}

fn row(handler: &HandlerView) -> [String; 9] {
    let dash = || "-".to_owned();
    [
        handler.name.clone(),
        handler.state.name().to_owned(),
        handler.revision.as_deref().map_or_else(dash, |digest| short(digest).to_owned()),
        handler.since.clone().unwrap_or_else(dash),
        handler.group.clone(),
        handler.topics.join(","),
        handler.partitions.len().to_string(),
        handler.lag_records.map_or_else(dash, |lag| lag.to_string()),
        handler.in_flight_records.to_string(),
    ]
}

fn notes(handler: &HandlerView) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(reason) = &handler.reason {
        notes.extend(reason.lines().map(str::to_owned));
    }
    for PartitionView { topic, partition, stopped, parked_records, .. } in &handler.partitions {
        if *parked_records > 0 {
            notes.push(format!(
                "{topic}/{partition} has {parked_records} parked records; `tidemill park list {}` shows their keys",
                handler.name
            ));
        }
        if let Some(StoppedView { offset, class, code, detail, revision }) = stopped {
            notes.push(format!(
                "{topic}/{partition} stands still at offset {offset} ({class} on {}): {code}: {detail}",
                short(revision)
            ));
        }
    }
    let aside = handler.set_aside.iter().rev();
    notes.extend(aside.map(|digest| format!("{} was rolled back from and is set aside", short(digest))));
    if !handler.previous.is_empty() {
        let digests: Vec<&str> = handler.previous.iter().map(|digest| short(digest)).collect();
        notes.push(format!("can go back to {}", digests.join(", ")));
    }
    notes
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::admin::HandlerState;

    fn handler(name: &str, state: HandlerState) -> HandlerView {
        HandlerView {
            name: name.to_owned(),
            group: name.to_owned(),
            topics: vec!["orders".to_owned()],
            state,
            reason: None,
            revision: None,
            since: None,
            previous: Vec::new(),
            set_aside: Vec::new(),
            partitions: Vec::new(),
            lag_records: None,
            in_flight_records: 0,
        }
    }

    #[test]
    fn the_list_is_aligned_and_says_below_a_handler_what_is_wrong() {
        let orders = HandlerView {
            revision: Some("0123456789abcdef".to_owned()),
            since: Some("2026-01-01T00:00:00Z".to_owned()),
            previous: vec!["aaaaaaaaaaaaaaaa".to_owned(), "bbbbbbbbbbbbbbbb".to_owned()],
            set_aside: vec!["cccccccccccccccc".to_owned()],
            lag_records: Some(12),
            in_flight_records: 3,
            ..handler("orders", HandlerState::Running)
        };
        let stopped = StoppedView {
            offset: 42,
            class: "rejected".to_owned(),
            code: "bad-amount".to_owned(),
            detail: "the amount is -1".to_owned(),
            revision: "0123456789abcdef".to_owned(),
        };
        let partition = PartitionView {
            topic: "orders".to_owned(),
            partition: 3,
            committed: Some(42),
            lag_records: Some(9),
            stopped: Some(stopped),
            parked_records: 5,
        };
        let orders = HandlerView { partitions: vec![partition], ..orders };
        let audit = HandlerView { reason: Some("one\ntwo".to_owned()), ..handler("audit", HandlerState::Failed) };
        expect![[r#"
            HANDLER  STATE    REVISION      LIVE SINCE            GROUP   TOPICS  PARTITIONS  LAG  IN FLIGHT
            orders   running  0123456789ab  2026-01-01T00:00:00Z  orders  orders  1           12   3
              orders/3 has 5 parked records; `tidemill park list orders` shows their keys
              orders/3 stands still at offset 42 (rejected on 0123456789ab): bad-amount: the amount is -1
              cccccccccccc was rolled back from and is set aside
              can go back to aaaaaaaaaaaa, bbbbbbbbbbbb
            audit    failed   -             -                     audit   orders  0           -    0
              one
              two"#]]
        .assert_eq(&table(&[orders, audit]));
    }

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

    #[test]
    fn an_empty_list_says_what_to_do() {
        assert!(table(&[]).contains("put a folder"));
    }
}
