//! One HTTP/1.1 listener, for ingest and for admin: bounded connections, a time-out for heads, a token, a drain.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::units::{InvalidSecret, SecretRef};

/// After an accept failed (no file descriptors left), the next one waits this long.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A connection's read buffer, and so the longest head of a request.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "can't listen on `{address}`: {cause}; another process may have this port, choose another under `{room}.listen`"
)]
pub struct BindError {
    address: SocketAddr,
    room: &'static str,
    cause: io::Error,
}

/// What one listener takes at most.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Open connections; further ones wait in the system's queue.
    pub connections_max: usize,
    /// From when a head is waited for until it is complete: what an idle connection gets, too.
    pub head_timeout: Duration,
    /// After the stop, requests in hand get this long.
    pub drain_deadline: Duration,
}

/// A bound port that serves a router until it is told to stop.
pub struct Listener {
    tcp: TcpListener,
    address: SocketAddr,
    router: Router,
    bounds: Bounds,
}

impl Listener {
    /// Binds the port; `room` is the configuration's section, for the error.
    pub async fn bind(
        room: &'static str,
        address: SocketAddr,
        router: Router,
        bounds: Bounds,
    ) -> Result<Self, BindError> {
        let error = |cause| BindError { address, room, cause };
        let tcp = TcpListener::bind(address).await.map_err(error)?;
        let address = tcp.local_addr().map_err(error)?;
        Ok(Self { tcp, address, router, bounds })
    }

    /// Where it listens; of use when the configuration said port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`, then takes no more requests and finishes those in hand, at most until the drain deadline.
    /// Returns how many connections were cut off then.
    pub async fn run(self, stop: CancellationToken) -> usize {
        let Self { tcp, router, bounds, .. } = self;
        let connections = TaskTracker::new();
        let cut_off = CancellationToken::new();
        let places = Arc::new(Semaphore::new(bounds.connections_max));
        while let Some((tcp, place)) = accept(&tcp, &places, &stop).await {
            let connection = serve(tcp, router.clone(), bounds.head_timeout, stop.clone());
            let cut_off = cut_off.clone();
            connections.spawn(async move {
                let _place = place;
                cut_off.run_until_cancelled(connection).await;
            });
        }
        drop(tcp);
        connections.close();
        if timeout(bounds.drain_deadline, connections.wait()).await.is_ok() {
            return 0;
        }
        let left = connections.len();
        cut_off.cancel();
        connections.wait().await;
        left
    }
}

/// The next connection, once there is a place for it; `None` after the stop.
async fn accept(
    tcp: &TcpListener,
    places: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let next = async {
        let place = Arc::clone(places).acquire_owned().await.expect("nobody closes this semaphore");
        loop {
            match tcp.accept().await {
                Ok((stream, _peer)) => return (stream, place),
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    sleep(ACCEPT_AGAIN_AFTER).await;
                }
            }
        }
    };
    stop.run_until_cancelled(next).await
}

async fn serve(tcp: TcpStream, router: Router, head_timeout: Duration, stop: CancellationToken) {
    // Small answers must not wait for more; that it can't be set costs only speed.
    tcp.set_nodelay(true).ok();
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(tcp), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended badly");
    }
}

/// What `Authorization: Bearer` must carry. Only its digest is kept.
#[derive(Clone)]
pub struct Token([u8; 32]);

/// A token that can't protect anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// It could not be read.
    #[error(transparent)]
    Unreadable(#[from] InvalidSecret),
    /// It is empty, or could not be sent in a header.
    #[error(
        "the token is empty or has spaces or characters that a header can't carry; take for example the output of `openssl rand -hex 32`"
    )]
    Unusable,
}

impl Token {
    /// Reads the secret; a relative file is taken from `folder`.
    pub fn read(secret: &SecretRef, folder: &Path) -> Result<Self, InvalidToken> {
        let secret = secret.read_strict(folder)?;
        let text = secret.expose();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidToken::Unusable);
        }
        Ok(Self(Sha256::digest(text).into()))
    }

    /// Whether a request carries it. The time that this takes does not depend on how much of it is right.
    pub fn allows(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(AUTHORIZATION) else { return false };
        let Some((scheme, given)) = value.as_bytes().split_at_checked(7) else { return false };
        let given: [u8; 32] = Sha256::digest(given).into();
        let difference = self.0.iter().zip(given).fold(0, |difference, (ours, theirs)| difference | (ours ^ theirs));
        scheme.eq_ignore_ascii_case(b"Bearer ") & (difference == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Result<Token, InvalidToken> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), text).unwrap();
        Token::read(&SecretRef::File { file: "token".into() }, folder.path())
    }

    #[test]
    fn only_the_whole_token_opens() {
        let token = token("correct-horse\n").unwrap();
        let allows = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            token.allows(&headers)
        };
        assert!(allows("Bearer correct-horse"));
        assert!(allows("bearer correct-horse"));
        for wrong in
            ["Bearer correct-hors", "Bearer correct-horse ", "Bearer ", "Basic correct-horse", "correct-horse", ""]
        {
            assert!(!allows(wrong), "`{wrong}` opened");
        }
        assert!(!token.allows(&HeaderMap::new()));
    }

    #[test]
    fn a_token_that_no_client_could_send_is_refused() {
        for unusable in ["", "\n", "two words", "schlüssel"] {
            assert_eq!(token(unusable).err(), Some(InvalidToken::Unusable));
        }
    }
}
