//! The relay between real clients and real listeners, in a world of names that the test gives out.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod world;

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use mcp_hub_dataplane_api::permit::PermitKey;
use mcp_hub_relay::{Bounds, Drain};
use world::{PUBLIC, World, echo, http_server};

#[tokio::test]
async fn a_listed_host_is_reached_through_a_tunnel_and_nothing_else_is() {
    let world = World::new().name("api.example.com", &[PUBLIC]).listen(PUBLIC, 443, echo().await).start().await;
    let permit = world.permit(&["api.example.com:443"]);

    let mut tunnel = world.connect("api.example.com:443", &permit).await.tunnel();
    assert_eq!(tunnel.say("hello").await, "hello");
    assert_eq!(tunnel.say("again").await, "again");

    for (to, why) in [
        ("other.example.com:443", "it is not in spec.permissions.network.egress"),
        ("api.example.com:80", "it is not in spec.permissions.network.egress"),
        // The address behind the name is not the name.
        ("93.184.215.14:443", "it is not in spec.permissions.network.egress"),
    ] {
        let answer = world.connect(to, &permit).await;
        assert_eq!(answer.status, 403, "{to}");
        assert!(answer.text.contains(why) && answer.text.contains("team.a"), "{}", answer.text);
    }
    // Nothing was even looked up for those.
    assert_eq!(world.lookups(), ["api.example.com"]);
}

#[tokio::test]
async fn plain_http_goes_on_without_what_was_for_the_relay() {
    let server = http_server().await;
    let world = World::new().name("www.example.com", &[PUBLIC]).listen(PUBLIC, 8080, server).start().await;
    let permit = world.permit(&["www.example.com:8080"]);
    let more = "Host: evil.example.net\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-Kept: 2\r\n";
    let answer = world.ask("POST", "http://www.example.com:8080/path?q", &permit, more, "the body").await;
    assert_eq!(answer.status, 200);
    let seen = answer.text.to_ascii_lowercase();
    assert!(seen.contains("post /path?q http/1.1\r\n") && seen.contains("host: www.example.com:8080\r\n"), "{seen}");
    assert!(seen.contains("x-kept: 2\r\n") && seen.ends_with("the body"), "{seen}");
    assert!(!seen.contains("proxy-authorization") && !seen.contains("x-hop") && !seen.contains("evil"), "{seen}");
    assert!(!answer.head.to_ascii_lowercase().contains("keep-alive: timeout"), "{}", answer.head);

    // The end of a connection's server does not end the connection to the relay; a denied one neither.
    let denied = world.ask("GET", "http://other.example.com/", &permit, "", "").await;
    assert_eq!(denied.status, 403);
    assert_eq!(world.ask("GET", "https://www.example.com/", &permit, "", "").await.status, 400);
}

#[tokio::test]
async fn nobody_is_served_without_a_permit_of_this_key() {
    let world = World::new().name("api.example.com", &[PUBLIC]).listen(PUBLIC, 443, echo().await).start().await;
    let permit = world.permit(&["api.example.com:443"]);
    let other_key = world::signed("team.a", &["api.example.com:443"], &PermitKey::new([9; 32]));
    let other_name = permit.replace("team.a:", "team.b:");
    for wrong in ["", "team.a:", "team.a:AAAA", &other_key, &other_name] {
        let answer = world.connect("api.example.com:443", wrong).await;
        assert_eq!(answer.status, 407, "{wrong}");
        assert!(answer.head.to_ascii_lowercase().contains("proxy-authenticate: basic"), "{}", answer.head);
        assert!(answer.text.contains("HTTPS_PROXY"), "{}", answer.text);
    }
    assert_eq!(world.get("/anything").await.status, 400);
    assert!(world.lookups().is_empty());

    // A new key makes the old permit worthless at once.
    world.relay.rekey(PermitKey::new([9; 32]));
    assert_eq!(world.connect("api.example.com:443", &permit).await.status, 407);
    assert_eq!(world.connect("api.example.com:443", &other_key).await.status, 200);
}

#[tokio::test]
async fn a_name_that_leads_into_the_cluster_or_to_metadata_leads_nowhere() {
    let inside: IpAddr = "10.96.0.10".parse().unwrap();
    let world = World::new()
        .name("inside.example.com", &[inside])
        .name("meta.example.com", &["169.254.169.254".parse().unwrap()])
        .name("self.example.com", &["::ffff:127.0.0.1".parse().unwrap()])
        .name("both.example.com", &["127.0.0.1".parse().unwrap(), inside, PUBLIC])
        .listen(inside, 443, echo().await)
        .listen(PUBLIC, 443, echo().await)
        .start()
        .await;
    let names = world.permit(&["*.example.com:443"]);
    let answer = world.connect("inside.example.com:443", &names).await;
    assert_eq!(answer.status, 403);
    assert!(answer.text.contains("add 10.96.0.10:443 to spec.permissions.network.egress"), "{}", answer.text);
    for name in ["meta", "self"] {
        let everything = world.permit(&["*.example.com:443", "0.0.0.0/0:443", "[::]/0:443"]);
        let answer = world.connect(&format!("{name}.example.com:443"), &everything).await;
        assert_eq!(answer.status, 403);
        assert!(answer.text.contains("nobody connects to it"), "{}", answer.text);
    }
    // What is left of a mixed answer is used.
    let mut tunnel = world.connect("both.example.com:443", &names).await.tunnel();
    assert_eq!(tunnel.say("public").await, "public");
    // Who is meant to get there says so, and may then come by address as well.
    let meant = world.permit(&["inside.example.com:443", "10.96.0.0/12:443"]);
    for to in ["inside.example.com:443", "10.96.0.10:443"] {
        let mut tunnel = world.connect(to, &meant).await.tunnel();
        assert_eq!(tunnel.say("inside").await, "inside");
    }
    assert!(world.dialled().iter().all(|address| !address.ip().to_canonical().is_loopback()), "{:?}", world.dialled());
}

#[tokio::test]
async fn public_addresses_that_are_used_inside_are_as_private_ones() {
    let world = World::new()
        .local("93.184.0.0/16")
        .name("inside.example.com", &[PUBLIC])
        .listen(PUBLIC, 443, echo().await)
        .start()
        .await;
    let answer = world.connect("inside.example.com:443", &world.permit(&["*.example.com:443"])).await;
    assert_eq!(answer.status, 403);
    assert!(answer.text.contains(&format!("add {PUBLIC}:443")), "{}", answer.text);
    assert!(world.dialled().is_empty());
    let meant = world.permit(&["*.example.com:443", &format!("{PUBLIC}:443")]);
    let mut tunnel = world.connect("inside.example.com:443", &meant).await.tunnel();
    assert_eq!(tunnel.say("inside").await, "inside");
}

#[tokio::test]
async fn what_fails_further_on_is_told_by_where_and_why() {
    let silent: IpAddr = "93.184.215.15".parse().unwrap();
    let bounds = Bounds { lookup: Duration::from_secs(2), connect: Duration::from_secs(2), ..Bounds::default() };
    let world = World::new()
        .bounds(bounds)
        .name("closed.example.com", &[PUBLIC])
        .name("silent.example.com", &[silent])
        .slow("slow.example.com")
        .silent(silent)
        .name("rude.example.com", &[PUBLIC])
        .listen(PUBLIC, 81, echo().await)
        .start()
        .await;
    let permit = world.permit(&["*.example.com:443", "rude.example.com:81"]);
    for (name, status, why) in [
        ("closed", 502, "could not connect to closed.example.com:443 at 93.184.215.14"),
        ("nowhere", 502, "nowhere.example.com:443 has no address"),
        ("silent", 504, "silent.example.com:443 at 93.184.215.15 did not answer"),
        ("slow", 504, "slow.example.com:443 could not be looked up"),
    ] {
        let answer = world.connect(&format!("{name}.example.com:443"), &permit).await;
        assert_eq!(answer.status, status, "{}", answer.text);
        assert!(answer.text.contains(why), "{}", answer.text);
    }
    // It echoes the request, which is no answer.
    let rude = world.ask("GET", "http://rude.example.com:81/", &permit, "", "").await;
    assert_eq!(rude.status, 502, "{}", rude.text);
}

#[tokio::test]
async fn one_servers_connections_leave_room_for_others() {
    let bounds = Bounds { of_a_server: 2, ..Bounds::default() };
    let world =
        World::new().bounds(bounds).name("api.example.com", &[PUBLIC]).listen(PUBLIC, 443, echo().await).start().await;
    let permit = world.permit(&["api.example.com:443"]);
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(world.connect("api.example.com:443", &permit).await.tunnel());
    }
    let answer = world.connect("api.example.com:443", &permit).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text.contains("team.a has 2 connections already"), "{}", answer.text);
    let other = world::signed("team.b", &["api.example.com:443"], &world::key());
    let mut tunnel = world.connect("api.example.com:443", &other).await.tunnel();
    assert_eq!(tunnel.say("other").await, "other");
    // A place that is given back is taken again.
    held.pop();
    world::eventually(async || {
        let answer = world.connect("api.example.com:443", &permit).await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text) }
    })
    .await;
}

#[tokio::test]
async fn who_shows_no_permit_takes_no_place_for_long_and_not_many() {
    let bounds = Bounds { unproven: 2, head: Duration::from_secs(4), ..Bounds::default() };
    let world =
        World::new().bounds(bounds).name("api.example.com", &[PUBLIC]).listen(PUBLIC, 443, echo().await).start().await;
    let mut mute = [world.open().await, world.open().await];
    let answer = world.get("/").await;
    assert_eq!(answer.status, 503);
    assert!(answer.text.contains("all the connections"), "{}", answer.text);
    for stream in &mut mute {
        assert_eq!(world::rest(stream).await, "");
    }
    // There is a place again, if not an answer to what is no request for a proxy.
    world::eventually(async || match world.get("/").await.status {
        400 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    // A head without end is cut as well.
    let long = "X: ".to_owned() + &"x".repeat(64 << 10) + "\r\n";
    let answer = world.ask("GET", "http://api.example.com/", "", &long, "").await;
    assert_eq!(answer.status, 431);
}

#[tokio::test]
async fn a_tunnel_on_which_nothing_moves_is_cut_and_a_half_closed_one_is_not() {
    let bounds = Bounds { idle: Duration::from_secs(2), ..Bounds::default() };
    let world =
        World::new().bounds(bounds).name("api.example.com", &[PUBLIC]).listen(PUBLIC, 443, echo().await).start().await;
    let permit = world.permit(&["api.example.com:443"]);
    let mut idle = world.connect("api.example.com:443", &permit).await.tunnel();
    assert_eq!(idle.say("once").await, "once");
    assert_eq!(idle.rest().await, "");

    let mut half = world.connect("api.example.com:443", &permit).await.tunnel();
    half.send("last words").await;
    half.finish().await;
    assert_eq!(half.rest().await, "last words");
}

#[tokio::test]
async fn at_its_end_it_goes_on_for_a_while_finishes_what_is_under_way_and_cuts_the_rest() {
    let drain = Drain { delay: Duration::from_secs(4), limit: Duration::from_millis(500) };
    let mut world =
        World::new().drain(drain).name("api.example.com", &[PUBLIC]).listen(PUBLIC, 443, echo().await).start().await;
    let permit = world.permit(&["api.example.com:443"]);
    let mut tunnel = world.connect("api.example.com:443", &permit).await.tunnel();
    world.stop();
    // Those who were sent here before it was known elsewhere are served.
    assert_eq!(world.connect("api.example.com:443", &permit).await.status, 200);
    assert_eq!(tunnel.say("still here").await, "still here");
    world.ended().await;
    assert_eq!(tunnel.rest().await, "");
    let refused = world.try_open().await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}
