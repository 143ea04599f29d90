//! From the layers to the checked configuration: what each value may be, and what fits together.

use std::net::SocketAddr;
use std::time::Duration;

use nightlight_common::config::broker::broker;
use nightlight_common::config::{Key, Layers};
use nightlight_common::http::{self, Access};

use super::{Config, keys, rules};
use crate::decision::Group;
use crate::store::{Address, Database};
use crate::topics::{Devices, Pattern, Topics, is_device_id};
use crate::web::Web;

/// The session at the broker has this name when nobody gives it another.
const CLIENT_ID: &str = "nightlight-server";
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// The configuration, as good as the layers give it; it counts only if `layers` has no problem after.
pub(super) fn check(layers: &mut Layers) -> Option<Config> {
    let shared = shared(layers);
    let usual = match &shared {
        None => CLIENT_ID.to_owned(),
        Some(_) => format!("{CLIENT_ID}-{}", machine()),
    };
    let broker = broker(layers, &keys::BROKER, &usual);
    if shared.is_some() && !is_device_id(&broker.client_id) {
        layers.problem(
            &keys::BROKER_CLIENT_ID,
            "is part of a topic with broker.shared; leave slashes, \"+\" and \"#\" out",
        );
    }
    let database = database(layers);
    let devices = parsed(layers, &keys::DEVICES_ID, Devices::parse);
    let keep = layers.duration_or(&keys::DATABASE_KEEP, "forever", HOUR..=100_000 * DAY);
    let max_devices = layers.whole(&keys::DEVICES_MAX, 1..=10_000_000);
    let topics = topics(layers);
    let status_topic = status_topic(layers, topics.as_ref());
    let is_file =
        matches!(&database, Some(database) if matches!(database.address, Address::Sqlite(_)));
    if shared.is_some() && is_file {
        layers.problem(
            &keys::BROKER_SHARED,
            "needs a database that several servers can reach; set database.url to one of PostgreSQL",
        );
    }
    let web = web(layers);
    let rules = rules::rules(layers);
    let lease = layers.duration(&keys::CONTROL_LEASE, SECOND..=DAY);
    let expiry = layers.duration(&keys::CONTROL_EXPIRY, SECOND..=DAY);
    let groups = groups(layers);
    if !groups.is_empty()
        && devices
            .as_ref()
            .is_some_and(|devices| *devices != Devices::All)
    {
        layers.problem(
            &keys::DEVICES_ID,
            "a group needs all its devices; write \"+\"",
        );
    }
    Some(Config {
        database: database?,
        keep,
        web,
        devices: devices?,
        max_devices: usize::try_from(max_devices).unwrap_or(usize::MAX),
        topics: topics?,
        account_topic: status_topic
            .rsplit_once('/')
            .map_or("account".to_owned(), |(parent, _)| {
                format!("{parent}/account")
            }),
        // One that dies must not speak for those that live.
        status_topic: match &shared {
            None => status_topic,
            Some(_) => format!("{status_topic}/{}", broker.client_id),
        },
        shared,
        rules: rules?,
        lease,
        expiry,
        broker,
        groups,
        warnings: std::mem::take(&mut layers.warnings),
    })
}

/// The name of a shared subscription.
fn shared(layers: &mut Layers) -> Option<String> {
    let name = layers.text(&keys::BROKER_SHARED);
    if !name.is_empty() && !is_device_id(&name) {
        layers.problem(
            &keys::BROKER_SHARED,
            "is no name; leave slashes, \"+\" and \"#\" out",
        );
    }
    (!name.is_empty()).then_some(name)
}

/// The name of this machine.
fn machine() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

fn database(layers: &mut Layers) -> Option<Database> {
    let address = parsed(layers, &keys::DATABASE_URL, Address::parse);
    let password_file = layers.path(&keys::DATABASE_PASSWORD_FILE);
    let timeout = layers.duration(&keys::DATABASE_TIMEOUT, SECOND..=10 * 60 * SECOND);
    if let Some(file) = &password_file
        && let Err(error) = std::fs::read_to_string(file)
    {
        let file = file.display();
        layers.problem(
            &keys::DATABASE_PASSWORD_FILE,
            format!("{file} cannot be read: {error}; check the path and its rights"),
        );
    }
    match &address {
        Some(Address::Sqlite(_)) if password_file.is_some() => layers.warning(
            &keys::DATABASE_PASSWORD_FILE,
            "a file of SQLite has no password; this one is not used",
        ),
        Some(address) if address.is_open() => layers.warning(
            &keys::DATABASE_URL,
            "the database's certificate is not checked; add ?sslmode=verify-full&sslrootcert=FILE",
        ),
        _ => {}
    }
    Some(Database {
        address: address?,
        password_file,
        timeout,
    })
}

fn web(layers: &mut Layers) -> Option<Web> {
    let listen = layers.text(&keys::WEB_LISTEN);
    let file = layers.path(&keys::WEB_TOKEN_FILE);
    let hosts = layers.text(&keys::WEB_HOSTS);
    let token = file.and_then(|file| {
        let token = http::token(&file);
        token
            .map_err(|what| layers.problem(&keys::WEB_TOKEN_FILE, what))
            .ok()
    });
    if listen.is_empty() || !layers.are_good(&[&keys::WEB_TOKEN_FILE]) {
        return None;
    }
    let Ok(listen) = listen.parse::<SocketAddr>() else {
        layers.problem(
            &keys::WEB_LISTEN,
            "is no address with a port; write one such as \"127.0.0.1:8081\"",
        );
        return None;
    };
    let hosts = hosts.split(',').map(|host| host.trim().to_owned());
    let hosts = hosts.filter(|host| !host.is_empty()).collect();
    match Access::new(listen, token, hosts) {
        Ok(access) => Some(Web { listen, access }),
        Err(what) => {
            layers.problem(&keys::WEB_LISTEN, what);
            None
        }
    }
}

fn topics(layers: &mut Layers) -> Option<Topics> {
    let all: [&'static Key; 7] = [
        &keys::TOPICS_TELEMETRY,
        &keys::TOPICS_HISTORY,
        &keys::TOPICS_EVENTS,
        &keys::TOPICS_COMMANDS,
        &keys::TOPICS_ACKS,
        &keys::TOPICS_STATE,
        &keys::TOPICS_STATUS,
    ];
    let read = all.map(|key| (key, parsed(layers, key, Pattern::parse)));
    for (index, (key, pattern)) in read.iter().enumerate() {
        let before = read.iter().take(index);
        let same = before
            .clone()
            .find(|(_, other)| pattern.is_some() && other == pattern);
        if let Some((other, _)) = same {
            layers.problem(
                key,
                format!("is the topic of {} too; give each its own", other.path),
            );
        }
    }
    let [telemetry, history, events, commands, acks, state, status] =
        read.map(|(_, pattern)| pattern);
    Some(Topics {
        telemetry: telemetry?,
        history: history?,
        events: events?,
        commands: commands?,
        acks: acks?,
        state: state?,
        status: status?,
    })
}

fn status_topic(layers: &mut Layers, topics: Option<&Topics>) -> String {
    let topic = layers.text(&keys::TOPICS_SERVER_STATUS);
    if topic.is_empty() || topic.contains(['+', '#', '{', '}']) {
        layers.problem(
            &keys::TOPICS_SERVER_STATUS,
            "is no topic to publish on; leave \"+\", \"#\" and braces out",
        );
    } else if topics.is_some_and(|topics| topics.read(&topic).is_some()) {
        layers.problem(
            &keys::TOPICS_SERVER_STATUS,
            "is the topic of a device too; give the server its own",
        );
    }
    topic
}

fn groups(layers: &mut Layers) -> Vec<Group> {
    let mut groups = Vec::new();
    for (name, members) in layers.lists(keys::GROUPS) {
        if members.is_empty() {
            let line = format!("groups.{name}: has no members; name some or remove it");
            layers.problems.push(line);
        }
        for bad in members.iter().filter(|member| !is_device_id(member)) {
            let line = format!(
                "groups.{name}: {bad:?} is no device id; a slash, \"+\" and \"#\" cannot be in one"
            );
            layers.problems.push(line);
        }
        groups.push(Group { name, members });
    }
    let mut members: Vec<&String> = groups.iter().flat_map(|group| &group.members).collect();
    members.sort();
    if let Some(twice) = members.windows(2).find(|pair| pair[0] == pair[1]) {
        let line = format!(
            "groups: {} is in a group twice, or in two; remove it from one",
            twice[0]
        );
        layers.problems.push(line);
    }
    groups
}

fn parsed<T>(
    layers: &mut Layers,
    key: &Key,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    let text = layers.text(key);
    parse(&text).map_err(|what| layers.problem(key, what)).ok()
}
