//! Over real HTTP, against a host that answers as each test says.

use std::sync::Mutex;

use tokio::task::{JoinHandle, spawn_blocking};

use super::*;
use crate::cli::client::{Client, ClientError};
use crate::config::units::SecretRef;

struct Fake {
    readiness: Mutex<Readiness>,
    handlers: Vec<HandlerView>,
    /// One result for each request.
    results: Mutex<Vec<Result<RolledBack, RollBackError>>>,
    paused: Mutex<Vec<bool>>,
}

impl Host for Fake {
    fn readiness(&self) -> Readiness {
        self.readiness.lock().unwrap().clone()
    }

    fn handlers(&self) -> Vec<HandlerView> {
        self.handlers.clone()
    }

    fn pause(&self, handler: &str, paused: bool) -> Result<(), PauseError> {
        match handler {
            "orders" => {
                self.paused.lock().unwrap().push(paused);
                Ok(())
            }
            other => Err(PauseError::NoSuchHandler(other.to_owned())),
        }
    }

    fn whereabouts(&self, from: TopicPartition, offset: Offset) -> BoxFuture<'_, Vec<WhereView>> {
        let view = WhereView {
            handler: format!("{from}"),
            group: "g".to_owned(),
            state: WhereState::Retrying,
            tries: 2,
            again_in_ms: Some(30),
            committed: Some(offset),
            paused: false,
            parked_at: None,
            stopped: None,
            detail: None,
        };
        Box::pin(std::future::ready(vec![view]))
    }

    fn parked<'a>(&'a self, handler: &'a str) -> BoxFuture<'a, Result<ParkedView, ParkedError>> {
        let answer = match handler {
            "orders" => Ok(ParkedView { more: 7, reach: reach(), ..ParkedView::default() }),
            other => Err(ParkedError::NotRunning(other.to_owned())),
        };
        Box::pin(std::future::ready(answer))
    }

    fn unpark<'a>(&'a self, handler: &'a str, request: UnparkRequest) -> BoxFuture<'a, Result<Unparked, ParkedError>> {
        assert_eq!(handler, "orders");
        let keys = usize::from(request.key.as_deref() == Some("k"));
        let answer = match request.partition {
            Some(partition) => Err(ParkedError::Invalid(format!("there is no partition {partition}"))),
            None => Ok(Unparked { keys, records: 3, reach: reach() }),
        };
        Box::pin(std::future::ready(answer))
    }

    fn move_offsets<'a>(
        &'a self,
        handler: &'a str,
        wish: &'a MoveBody,
    ) -> BoxFuture<'a, Result<MoveView, MoveRefused>> {
        let answer = match (handler, wish.to.as_str()) {
            ("orders", "earliest") => {
                let (topic, partition) = (wish.topic.clone().unwrap_or_default(), wish.partition.unwrap_or_default());
                let moved = vec![MovedView { topic, partition, from: Some(7), to: 0 }];
                Ok(MoveView { handler: handler.to_owned(), dry_run: wish.dry_run, moved, elsewhere: Vec::new() })
            }
            ("orders", to) => Err(MoveRefused::Invalid(format!("`to` is `{to}`"))),
            (other, _) => Err(MoveRefused::NoSuchHandler(other.to_owned())),
        };
        Box::pin(async { answer })
    }

    fn roll_back<'a>(&'a self, handler: &'a str) -> BoxFuture<'a, Result<RolledBack, RollBackError>> {
        assert_eq!(handler, "orders");
        let result = self.results.lock().unwrap().remove(0);
        Box::pin(async { result })
    }
}

fn reach() -> Reach {
    let silent = vec![Silent { topic: "orders".to_owned(), partition: 1, detail: "busy".to_owned() }];
    let elsewhere = vec![Elsewhere { topic: "orders".to_owned(), partition: 2, owner: None }];
    Reach { partitions: 4, silent, elsewhere: Some(elsewhere) }
}

fn orders() -> HandlerView {
    HandlerView {
        name: "orders".to_owned(),
        group: "orders".to_owned(),
        topics: vec!["orders".to_owned()],
        state: HandlerState::Running,
        reason: None,
        revision: Some("0123456789abcdef".to_owned()),
        since: Some("2026-01-01T00:00:00Z".to_owned()),
        previous: vec!["aaaaaaaaaaaaaaaa".to_owned()],
        set_aside: Vec::new(),
        partitions: vec![PartitionView {
            topic: "orders".to_owned(),
            partition: 0,
            committed: Some(7),
            lag_records: Some(3),
            stopped: None,
            parked_records: 0,
        }],
        lag_records: Some(3),
        in_flight_records: 1,
    }
}

struct Running {
    address: SocketAddr,
    host: Arc<Fake>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(config: Config, results: Vec<Result<RolledBack, RollBackError>>) -> Self {
        let config = Config { listen: "127.0.0.1:0".parse().unwrap(), ..config };
        let readiness = Mutex::new(Readiness::waiting_for(Vec::new()));
        let host = Arc::new(Fake {
            readiness,
            handlers: vec![orders()],
            results: Mutex::new(results),
            paused: Mutex::default(),
        });
        let admin = Admin::bind(&config, Path::new("."), Arc::clone(&host) as _, Metrics::new()).await.unwrap();
        let address = admin.address();
        let stop = CancellationToken::new();
        let task = tokio::spawn(admin.run(stop.clone()));
        Self { address, host, stop, task }
    }

    async fn get(&self, path: &str, token: Option<&str>) -> (u16, String, String) {
        let url = format!("http://{}{path}", self.address);
        let token = token.map(|token| format!("Bearer {token}"));
        let get = spawn_blocking(move || {
            let mut request = ureq::get(&url).config().http_status_as_error(false).build();
            if let Some(token) = token {
                request = request.header("Authorization", token);
            }
            let mut response = request.call().unwrap();
            let kind = response.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
            let body = response.body_mut().read_to_string().unwrap();
            (response.status().as_u16(), kind.unwrap_or_default(), body)
        });
        get.await.unwrap()
    }

    fn client(&self, token: Option<&str>) -> Client {
        Client::new(&format!("http://{}/", self.address), token.map(str::to_owned))
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_means_that_nothing_is_missing() {
    let admin = Running::start(Config::default(), Vec::new()).await;
    assert_eq!(admin.get("/healthz", None).await.0, 200);
    assert_eq!(admin.get("/readyz", None).await.0, 200);
    let missing = Missing { part: "handler orders".to_owned(), detail: "has not joined its group".to_owned() };
    *admin.host.readiness.lock().unwrap() = Readiness::waiting_for(vec![missing]);
    let (status, _, body) = admin.get("/readyz", None).await;
    assert_eq!(status, 503);
    assert_eq!(body, r#"{"ready":false,"missing":[{"part":"handler orders","detail":"has not joined its group"}]}"#);
    assert_eq!(admin.get("/healthz", None).await.0, 200, "not ready is not dead");
    admin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_in_the_format_that_prometheus_asks_for() {
    let admin = Running::start(Config::default(), Vec::new()).await;
    let (status, kind, body) = admin.get("/metrics", None).await;
    assert_eq!((status, kind.as_str()), (200, metrics::CONTENT_TYPE));
    assert!(body.contains("tidemill_process_info{version=") && body.ends_with("# EOF\n"), "{body}");
    admin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_probes_get_yes_or_no_and_nobody_else_gets_anything() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "hunter2\n").unwrap();
    let admin = Running::start(Config { token: Some(SecretRef::File { file }), ..Config::default() }, Vec::new()).await;
    let missing = Missing { part: "handler orders".to_owned(), detail: "x".to_owned() };
    *admin.host.readiness.lock().unwrap() = Readiness::waiting_for(vec![missing]);
    assert_eq!(admin.get("/healthz", None).await.0, 200);
    assert_eq!(admin.get("/readyz", None).await.2, r#"{"ready":false,"missing":[]}"#);
    assert!(admin.get("/readyz", Some("hunter2")).await.2.contains("handler orders"));
    for path in ["/metrics", "/handlers"] {
        for token in [None, Some("hunter1")] {
            let (status, _, body) = admin.get(path, token).await;
            assert_eq!(status, 401, "{path}");
            assert!(body.contains("unauthorized") && !body.contains("orders"), "{path}: {body}");
        }
        assert_eq!(admin.get(path, Some("hunter2")).await.0, 200, "{path}");
    }

    let (none, wrong, right) = (admin.client(None), admin.client(Some("hunter1")), admin.client(Some("hunter2")));
    let told = spawn_blocking(move || (none.list(), wrong.roll_back("orders"), right.list())).await.unwrap();
    assert!(told.0.is_err_and(|error| error.to_string().contains("with --token-env NAME")));
    assert!(told.1.is_err_and(|error| error.to_string().contains("is not its admin token")));
    assert_eq!(told.2.unwrap(), [orders()]);
    admin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_can_not_roll_back() {
    let admin = Running::start(Config::default(), Vec::new()).await;
    let url = format!("http://{}/handlers/orders/rollback", admin.address);
    let answer = spawn_blocking(move || {
        let request = ureq::post(&url).config().http_status_as_error(false).build();
        request.header("Origin", "http://evil.example").send_empty().unwrap().status().as_u16()
    });
    assert_eq!(answer.await.unwrap(), 403);
    admin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_is_paused_and_resumed_with_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "hunter2\n").unwrap();
    let admin = Running::start(Config { token: Some(SecretRef::File { file }), ..Config::default() }, Vec::new()).await;
    let (wrong, right) = (admin.client(Some("hunter1")), admin.client(Some("hunter2")));
    let told = spawn_blocking(move || {
        let refused = wrong.pause("orders", true).unwrap_err().to_string();
        let unknown = right.pause("else", true).unwrap_err().to_string();
        (refused, unknown, right.pause("orders", true).unwrap(), right.pause("orders", false).unwrap())
    });
    let (refused, unknown, paused, resumed) = told.await.unwrap();
    assert!(refused.contains("is not its admin token"), "{refused}");
    assert!(unknown.contains("there is no handler `else`"), "{unknown}");
    assert_eq!((paused.paused, resumed.paused), (true, false));
    assert_eq!(*admin.host.paused.lock().unwrap(), [true, false], "what is refused changes nothing");
    admin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_is_moved_with_what_was_wished_and_refusals_say_why() {
    let admin = Running::start(Config::default(), Vec::new()).await;
    let (client, address) = (admin.client(None), admin.address);
    let told = spawn_blocking(move || {
        let wish = |to: &str| MoveBody {
            to: to.to_owned(),
            topic: Some("orders".to_owned()),
            partition: Some(3),
            dry_run: true,
        };
        let moved = client.move_offsets("orders", &wish("earliest")).unwrap();
        let wrong = client.move_offsets("orders", &wish("never")).unwrap_err().to_string();
        let unknown = client.move_offsets("else", &wish("earliest")).unwrap_err().to_string();
        let post = ureq::post(format!("http://{address}/handlers/orders/offsets"));
        let post = post.config().http_status_as_error(false).build().content_type("application/json");
        let odd = post.send("{\"to\": \"earliest\", \"dry\": true}").unwrap().status().as_u16();
        (moved, wrong, unknown, odd)
    });
    let (moved, wrong, unknown, odd) = told.await.unwrap();
    let expected = MovedView { topic: "orders".to_owned(), partition: 3, from: Some(7), to: 0 };
    assert_eq!((moved.moved, moved.dry_run), (vec![expected], true));
    assert_eq!(wrong, "`to` is `never`");
    assert!(unknown.contains("there is no handler `else`"), "{unknown}");
    assert_eq!(odd, 422, "a key that nobody knows is not passed over");
    admin.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_show_what_the_host_says() {
    let rolled_back = RolledBack { revision: "aaaa".to_owned(), set_aside: "bbbb".to_owned(), not_kept: None };
    let results = vec![
        Ok(rolled_back.clone()),
        Err(RollBackError::NothingBefore("orders".to_owned())),
        Err(RollBackError::NoSuchHandler("orders".to_owned())),
        Err(RollBackError::NotRunning("orders".to_owned())),
    ];
    let admin = Running::start(Config::default(), results).await;
    let client = admin.client(None);
    let told = spawn_blocking(move || {
        assert_eq!(client.list().unwrap(), [orders()]);
        assert_eq!(client.roll_back("orders").unwrap(), rolled_back);
        [(); 3].map(|()| client.roll_back("orders").unwrap_err().to_string())
    });
    let told = told.await.unwrap();
    assert!(told[0].contains("has no revision before this one; drop in"), "{told:?}");
    assert!(told[1].contains("there is no handler `orders`"), "{told:?}");
    assert!(told[2].contains("does not run; correct its folder"), "{told:?}");
    admin.stop().await;
}

#[test]
fn without_a_host_the_command_says_how_to_start_one() {
    // Bound and given back: nobody listens there.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = Client::new(&format!("http://{address}"), None).list().unwrap_err();
    assert!(matches!(error, ClientError::NoHost { .. }), "{error:?}");
    assert!(error.to_string().contains("start it with `tidemill run`"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_and_parked_keys_are_asked_for_and_what_can_not_be_meant_is_refused() {
    let admin = Running::start(Config::default(), Vec::new()).await;
    let client = admin.client(None);
    let asked = spawn_blocking(move || {
        let k = UnparkRequest { key: Some("k".to_owned()), ..UnparkRequest::default() };
        let away = UnparkRequest { partition: Some(9), ..UnparkRequest::default() };
        let unparked = (client.unpark("orders", &k), client.unpark("orders", &away));
        (client.whereabouts("orders", 3, 42), unparked, client.parked("orders"), client.parked("nobody"))
    });
    let (places, (unparked, away), parked, nobody) = asked.await.unwrap();
    let place = &places.unwrap()[0];
    assert_eq!((place.handler.as_str(), place.committed, place.state), ("orders/3", Some(42), WhereState::Retrying));
    assert_eq!(unparked.unwrap(), Unparked { keys: 1, records: 3, reach: reach() });
    assert_eq!(away.unwrap_err().to_string(), "there is no partition 9");
    assert_eq!(parked.unwrap(), ParkedView { more: 7, reach: reach(), ..ParkedView::default() });
    assert!(nobody.unwrap_err().to_string().contains("no handler `nobody` runs here"));
    for path in ["/where/orders/x/42", "/where/orders/-1/42", "/where/orders/1/-4"] {
        assert_eq!(admin.get(path, None).await.0, 400, "{path}");
    }
    admin.stop().await;
}
