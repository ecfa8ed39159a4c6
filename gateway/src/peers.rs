//! The other replicas of the gateway, and where among them something lives that only one process can hold.
//!
//! Most of what a client does can be served by any replica, for what clients keep is sealed with one key. Bound to one are
//! calls that wait for their client, and the sessions with servers that have one for each client. Such a thing lives where
//! its token says. When that replica is gone, it stays with whoever took it over, and for what nobody has all agree on one by
//! hashing (rendezvous: the highest hash of thing and address), so that two of them do not hold it at once for longer than
//! it takes to see who is there.
//!
//! A connection between replicas begins with a greeting in which the other proves that it has the hub's key, and says which
//! run of which replica it is: an address that was given to another pod in the meantime gets nothing of a client's.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::guard::Principal;
use crate::seal::Seal;
use crate::upstream::Owner;

/// Path of the greeting; forwarded requests have this and their own path.
pub(crate) const FORWARD: &str = "/forward";
pub(crate) const HELLO: &str = "/forward/hello";
/// What the greeting begins with.
pub(crate) const NONCE: HeaderName = HeaderName::from_static("x-mcp-hub-nonce");
/// Whose request is forwarded, sealed.
pub(crate) const FORWARDED: HeaderName = HeaderName::from_static("x-mcp-hub-forwarded");
/// What a replica that ends had for clients.
pub(crate) const ADOPT: &str = "/forward/adopt";
/// By which a request is for a replica that has something of this owner's; its key in hexadecimal digits.
pub(crate) const IF_HELD: HeaderName = HeaderName::from_static("x-mcp-hub-if-held");
/// The answer of a replica that has not looked at a request.
pub(crate) const NOT_TAKEN: StatusCode = StatusCode::MISDIRECTED_REQUEST;

/// Replicas are near: one that takes no connection in this time is gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for a greeting.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one that could not be reached is not tried again.
const AVOID: Duration = Duration::from_secs(5);
/// Replicas asked whether they have something.
const STOPS_MAX: usize = 16;
/// How long what the name of all replicas stands for is believed.
const NAMES_HOLD: Duration = Duration::from_secs(2);
/// Connections kept to one replica.
const IDLE_MAX: usize = 32;
/// Replicas remembered as gone, or with connections; no hub has so many.
const KNOWN_MAX: usize = 256;

/// The places of a gateway with replicas.
#[derive(Debug, Clone)]
pub struct Replicas {
    /// Address of this replica's control listener, as the others reach it.
    pub advertise: SocketAddr,
    /// `HOST:PORT`s that stand for the control listeners of all replicas that are ready; this one may be among them.
    pub peers: Vec<String>,
}

/// One run of one replica, where the others reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Home {
    pub(crate) instance: String,
    pub(crate) address: SocketAddr,
}

impl Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.instance, self.address)
    }
}

impl FromStr for Home {
    type Err = NoHome;

    fn from_str(text: &str) -> Result<Self, NoHome> {
        let (instance, address) = text.split_once('@').ok_or(NoHome)?;
        Ok(Self { instance: instance.to_owned(), address: address.parse().map_err(|_| NoHome)? })
    }
}

#[derive(Debug)]
pub(crate) struct NoHome;

/// Something that one replica holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound<'a> {
    /// Whose it is.
    pub(crate) owner: Owner,
    /// Where it was begun.
    pub(crate) home: Option<&'a Home>,
}

#[derive(Debug)]
pub(crate) struct Peers {
    home: Home,
    names: Vec<String>,
    seal: Seal,
    kept: Mutex<HashMap<SocketAddr, Vec<Link>>>,
    gone: Mutex<HashMap<SocketAddr, Instant>>,
    found: tokio::sync::Mutex<Found>,
}

/// What the names stood for when they were looked up.
#[derive(Debug, Default)]
struct Found {
    addresses: Vec<SocketAddr>,
    /// Looked up again after that.
    until: Option<Instant>,
}

/// A connection to another replica.
#[derive(Debug)]
pub(crate) struct Link {
    sender: SendRequest<Full<Bytes>>,
    address: SocketAddr,
    instance: Arc<str>,
    /// What both sides added to the greeting: what is sealed for this connection opens in no other.
    greeting: Arc<str>,
}

/// One replica that a request is tried at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// That very run.
    Home(Home),
    /// It serves the request if it has something of the owner's already.
    IfHeld(SocketAddr),
    /// Whoever is there.
    Any(SocketAddr),
}

/// Who is tried for what nobody's home holds any more: those who have something of the owner's, and else the first of all.
/// What one has taken over stays there when others come.
fn successors(ranked: Vec<SocketAddr>, own: SocketAddr, leaves: bool) -> Vec<Stop> {
    let others: Vec<SocketAddr> = ranked.iter().copied().filter(|address| *address != own).take(STOPS_MAX).collect();
    let before_us = match leaves {
        true => others.len(),
        false => ranked.iter().position(|address| *address == own).unwrap_or(others.len()),
    };
    let first = others.iter().take(before_us).map(|address| Stop::Any(*address));
    others.iter().map(|address| Stop::IfHeld(*address)).chain(first).collect()
}

/// What became of a request to another replica.
pub(crate) enum Sent {
    Answered(Response<Incoming>),
    /// The other has not looked at it, and another may.
    Refused,
    /// The connection was over before.
    Unsent,
    /// The other may have acted on it.
    Gone(String),
}

impl Peers {
    pub(crate) fn new(instance: &str, replicas: Replicas, forward_key: [u8; 32]) -> Self {
        Self {
            home: Home { instance: instance.to_owned(), address: replicas.advertise },
            names: replicas.peers,
            seal: Seal::new(forward_key),
            kept: Mutex::default(),
            gone: Mutex::default(),
            found: tokio::sync::Mutex::default(),
        }
    }

    /// This replica.
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// Where a request is tried that is about something of this owner's which has no home any more, one stop after the other.
    /// `holds`: whether this replica has something of the owner's; one that `leaves` takes nothing new that another could.
    pub(crate) async fn successors(&self, owner: Owner, holds: bool, leaves: bool) -> Vec<Stop> {
        let Some(key) = owner.key().filter(|_| !holds) else { return Vec::new() };
        successors(ranked(key, self.everybody().await), self.home.address, leaves)
    }

    /// A connection for this stop; `None` if nobody is there.
    pub(crate) async fn link_for(&self, stop: &Stop) -> Option<Link> {
        match stop {
            Stop::Home(home) => self.reach(home).await,
            Stop::IfHeld(address) | Stop::Any(address) => self.link(*address).await,
        }
    }

    /// Who holds what this key stands for once this replica is gone.
    pub(crate) async fn successor(&self, key: &[u8]) -> Option<SocketAddr> {
        let mut others = self.everybody().await;
        others.retain(|address| *address != self.home.address);
        for address in ranked(key, others) {
            if let Some(link) = self.link(address).await {
                self.keep(link);
                return Some(address);
            }
        }
        None
    }

    /// Gives another replica what this one had for clients; whether it was taken.
    pub(crate) async fn hand(&self, to: SocketAddr, text: &str) -> bool {
        let Some(link) = self.link(to).await else { return false };
        let Some(sealed) = self.seal.close(text, &adopt_bound(&link.greeting)) else { return false };
        let mut request = Request::new(Full::new(Bytes::from(sealed)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = http::Uri::from_static(ADOPT);
        // A principal of its own: the request is nobody's.
        let sent = self.send(link, Principal([0; 32]), request).await;
        matches!(sent, Sent::Answered(answer) if answer.status().is_success())
    }

    /// What another replica gives by the connection with this greeting.
    pub(crate) fn open_handed(&self, greeting: &str, sealed: &str) -> Option<String> {
        Some(self.seal.open(sealed, &adopt_bound(greeting))?.text)
    }

    /// The way to that very run of that replica; `None` if it is gone.
    pub(crate) async fn reach(&self, home: &Home) -> Option<Link> {
        let link = self.link(home.address).await?;
        if *link.instance == home.instance {
            return Some(link);
        }
        self.keep(link);
        None
    }

    /// The ways to all others, and to `home` in any case.
    pub(crate) async fn others(&self, home: Option<&Home>) -> Vec<Link> {
        let mut addresses = self.everybody().await;
        if let Some(home) = home
            && !addresses.contains(&home.address)
        {
            addresses.push(home.address);
        }
        addresses.retain(|address| *address != self.home.address);
        futures::future::join_all(addresses.into_iter().map(|address| self.link(address)))
            .await
            .into_iter()
            .flatten()
            .collect()
    }

    /// This replica and what the names stand for.
    async fn everybody(&self) -> Vec<SocketAddr> {
        let mut found = self.found.lock().await;
        if found.until.is_none_or(|until| until < Instant::now()) {
            let lookups = self.names.iter().map(|name| timeout(HELLO_TIMEOUT, tokio::net::lookup_host(name)));
            let answers = futures::future::join_all(lookups).await;
            let addresses: Vec<SocketAddr> =
                answers.into_iter().flatten().flatten().flatten().take(KNOWN_MAX).collect();
            // A name server that does not answer takes nobody away, and is not waited for all the time.
            let hold = if addresses.is_empty() { NAMES_HOLD * 10 } else { NAMES_HOLD };
            if !addresses.is_empty() {
                found.addresses = addresses;
            }
            found.until = Some(Instant::now() + hold);
        }
        let mut addresses = found.addresses.clone();
        drop(found);
        addresses.push(self.home.address);
        addresses.sort();
        addresses.dedup();
        addresses
    }

    /// A connection that takes a request now.
    async fn link(&self, address: SocketAddr) -> Option<Link> {
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(links) = kept.get_mut(&address) {
                links.retain(|link| !link.sender.is_closed());
                if let Some(place) = links.iter().rposition(|link| link.sender.is_ready()) {
                    return Some(links.remove(place));
                }
                if links.is_empty() {
                    kept.remove(&address);
                }
            }
        }
        {
            let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
            gone.retain(|_, since| since.elapsed() < AVOID);
            if gone.contains_key(&address) {
                return None;
            }
        }
        let link = self.connect(address).await;
        if link.is_none() {
            let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
            if gone.len() < KNOWN_MAX {
                gone.insert(address, Instant::now());
            }
        }
        link
    }

    async fn connect(&self, address: SocketAddr) -> Option<Link> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await.ok()?.ok()?;
        crate::serve::tune(&stream);
        #[cfg(target_os = "linux")]
        keep_alive(&stream);
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(64 << 10).handshake(TokioIo::new(stream)).await.ok()?;
        // Ends with the other side, or when the sender is dropped and the last answer read.
        tokio::spawn(connection);
        let ours = nonce()?;
        let mut request = Request::new(Full::default());
        *request.uri_mut() = HELLO.parse().ok()?;
        request.headers_mut().insert(NONCE, HeaderValue::from_str(&ours).ok()?);
        request.headers_mut().insert(HOST, HeaderValue::from_str(&address.to_string()).ok()?);
        let asked = async {
            let response = sender.send_request(request).await.ok()?;
            let body = Limited::new(response.into_body(), 1024).collect().await.ok()?;
            String::from_utf8(body.to_bytes().to_vec()).ok()
        };
        let answer = timeout(HELLO_TIMEOUT, asked).await.ok()??;
        let (instance, theirs) = self.greeted(&ours, &answer)?;
        let ready = timeout(HELLO_TIMEOUT, sender.ready()).await;
        ready.ok()?.ok()?;
        Some(Link { sender, address, instance: instance.into(), greeting: format!("{ours}{theirs}").into() })
    }

    fn greeted(&self, ours: &str, answer: &str) -> Option<(String, String)> {
        let opened = self.seal.open(answer, &hello_bound(ours))?;
        let (instance, theirs) = opened.text.split_once(' ')?;
        Some((instance.to_owned(), theirs.to_owned()))
    }

    /// The answer to a greeting, and what the connection is known by from then on.
    pub(crate) fn greet(&self, theirs: &str) -> Option<(String, Arc<str>)> {
        let ours = nonce()?;
        let answer = self.seal.close(&format!("{} {ours}", self.home.instance), &hello_bound(theirs))?;
        Some((answer, format!("{theirs}{ours}").into()))
    }

    /// Sends a request of this principal.
    pub(crate) async fn send(&self, mut link: Link, principal: Principal, mut request: Request<Full<Bytes>>) -> Sent {
        let bound_to = forward_bound(&link.greeting, request.method(), request.uri().path());
        let header = self.seal.close(&hex::encode(principal.0), &bound_to);
        let header = header.and_then(|header| HeaderValue::from_str(&header).ok());
        let host = HeaderValue::from_str(&link.address.to_string()).ok();
        let (Some(header), Some(host)) = (header, host) else { return Sent::Refused };
        request.headers_mut().insert(FORWARDED, header);
        request.headers_mut().insert(HOST, host);
        match link.sender.try_send_request(request).await {
            Ok(response) => {
                let refused = response.status() == NOT_TAKEN;
                self.keep(link);
                if refused { Sent::Refused } else { Sent::Answered(response) }
            }
            Err(mut failed) => match failed.take_message() {
                Some(_) => Sent::Unsent,
                None => Sent::Gone(failed.error().to_string()),
            },
        }
    }

    /// Whose a forwarded request is; `None` if it was not sealed for this connection.
    pub(crate) fn open(&self, greeting: &str, method: &Method, path: &str, header: &str) -> Option<Principal> {
        let opened = self.seal.open(header, &forward_bound(greeting, method, path))?;
        let mut principal = [0; 32];
        hex::decode_to_slice(&opened.text, &mut principal).ok()?;
        Some(Principal(principal))
    }

    /// Keeps a connection whose answer may be under way.
    fn keep(&self, link: Link) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KNOWN_MAX && !kept.contains_key(&link.address) {
            kept.clear();
        }
        let links = kept.entry(link.address).or_default();
        links.retain(|link| !link.sender.is_closed());
        if links.len() < IDLE_MAX {
            links.push(link);
        }
    }
}

/// Addresses in the order in which they take over what this key stands for.
fn ranked(key: &[u8], addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let weight = |address: &SocketAddr| Sha256::digest([key, address.to_string().as_bytes()].concat());
    let mut ranked: Vec<_> = addresses.into_iter().map(|address| (weight(&address), address)).collect();
    ranked.sort_by(|a, b| b.cmp(a));
    ranked.into_iter().map(|(_, address)| address).collect()
}

fn nonce() -> Option<String> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).ok()?;
    Some(hex::encode(nonce))
}

fn hello_bound(nonce: &str) -> Vec<u8> {
    [b"mcp-hub hello\0", nonce.as_bytes()].concat()
}

fn forward_bound(greeting: &str, method: &Method, path: &str) -> Vec<u8> {
    format!("mcp-hub forward\0{greeting}\0{method} {path}").into_bytes()
}

fn adopt_bound(greeting: &str) -> Vec<u8> {
    format!("mcp-hub handover\0{greeting}").into_bytes()
}

/// A replica whose node is gone says nothing more: waiting for an answer of it has to end.
#[cfg(target_os = "linux")]
fn keep_alive(stream: &TcpStream) {
    use rustix::net::sockopt;
    // A socket that refuses is used all the same.
    sockopt::set_socket_keepalive(stream, true).ok();
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(10)).ok();
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5)).ok();
    sockopt::set_tcp_keepcnt(stream, 3).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(key: u8, port: u16) -> Peers {
        let advertise = SocketAddr::from(([127, 0, 0, 1], port));
        Peers::new("run", Replicas { advertise, peers: Vec::new() }, [key; 32])
    }

    #[test]
    fn a_forwarded_request_opens_only_in_the_connection_and_for_the_path_that_it_was_sealed_for() {
        let (one, other) = (peers(1, 1), peers(1, 2));
        let (answer, known_by) = other.greet("ours").unwrap();
        let (instance, theirs) = one.greeted("ours", &answer).unwrap();
        assert_eq!(instance, "run");
        let greeting = format!("ours{theirs}");
        assert_eq!(*known_by, *greeting);
        let sealed =
            |path| one.seal.close(&hex::encode([5; 32]), &forward_bound(&greeting, &Method::POST, path)).unwrap();
        let header = sealed("/forward/mcp");
        assert_eq!(other.open(&known_by, &Method::POST, "/forward/mcp", &header), Some(Principal([5; 32])));
        let (_, another) = other.greet("ours").unwrap();
        assert_eq!(other.open(&another, &Method::POST, "/forward/mcp", &header), None, "another connection");
        assert_eq!(other.open(&known_by, &Method::GET, "/forward/mcp", &header), None);
        assert_eq!(other.open(&known_by, &Method::POST, "/forward/servers/a/mcp", &header), None);
        assert_eq!(one.greeted("others", &answer), None, "the answer to another greeting");
        assert_eq!(peers(2, 3).greeted("ours", &answer), None, "another hub");
    }

    #[test]
    fn replicas_agree_on_who_takes_over_and_only_what_the_one_that_left_held_moves() {
        let address = |n: u8| SocketAddr::from(([10, 0, 0, n], 9000));
        let all: Vec<SocketAddr> = (1..=3).map(address).collect();
        let reversed: Vec<SocketAddr> = all.iter().rev().copied().collect();
        let mut held = HashMap::new();
        for key in 0..300_u32 {
            let key = key.to_le_bytes();
            let first = ranked(&key, all.clone())[0];
            assert_eq!(ranked(&key, reversed.clone())[0], first, "in whatever order they are found");
            *held.entry(first).or_insert(0) += 1;
            let left: Vec<SocketAddr> = all.iter().filter(|a| **a != address(2)).copied().collect();
            let after = ranked(&key, left)[0];
            assert!(after == first || first == address(2), "what others hold stays");
        }
        assert!(all.iter().all(|address| held[address] > 50), "{held:?}");
    }

    #[test]
    fn what_one_replica_took_over_is_looked_for_before_the_first_of_all_takes_it() {
        let [a, b, c] = [1, 2, 3].map(|n| SocketAddr::from(([10, 0, 0, n], 9000)));
        let stops = |own, leaves| successors(vec![a, b, c], own, leaves);
        let held = |address| Stop::IfHeld(address);
        assert_eq!(stops(a, false), [held(b), held(c)], "then here, as the first of all");
        assert_eq!(stops(b, false), [held(a), held(c), Stop::Any(a)]);
        assert_eq!(stops(c, false), [held(a), held(b), Stop::Any(a), Stop::Any(b)]);
        assert_eq!(stops(a, true), [held(b), held(c), Stop::Any(b), Stop::Any(c)], "not where it ends soon");
        assert_eq!(successors(vec![a], a, true), [], "where else");
    }

    #[test]
    fn a_home_is_read_as_it_is_written() {
        for address in ["10.1.2.3:9000", "[fd00::1]:9000"] {
            let home = Home { instance: "abc".to_owned(), address: address.parse().unwrap() };
            assert_eq!(home.to_string().parse::<Home>().unwrap(), home);
        }
        assert!("abc".parse::<Home>().is_err() && "abc@nowhere".parse::<Home>().is_err());
    }
}
