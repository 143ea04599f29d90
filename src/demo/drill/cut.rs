//! The way of the service to the broker, cut by a real fault and mended whatever happens.
//!
//! A table of its own in nftables drops what the service's user sends to the broker's port, and what comes back to the
//! connections that it has. Nobody is told, as with a cable that is pulled. The table goes when this value is dropped;
//! when the drill is killed, because its watcher then reads the end of a pipe; and when both are killed, because its
//! entries have a time after which the kernel forgets them. Called by the parent module.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The table; a name that nobody else has.
const TABLE: &str = "inet nightlight_drill";
/// A connection that stands, in /proc/net/tcp.
const ESTABLISHED: &str = "01";

/// Whom to cut off from what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// The service's user.
    pub(super) uid: u32,
    /// The broker's port.
    pub(super) broker: u16,
    /// The service's own ports of connections to it.
    pub(super) theirs: BTreeSet<u16>,
    /// The drill's own, which stay whole where the service runs as root.
    pub(super) ours: BTreeSet<u16>,
}

/// The way is cut while this lives.
#[derive(Debug)]
pub(super) struct Cut {
    watcher: Child,
}

impl Cut {
    /// Cuts it, for at most `limit`.
    ///
    /// # Errors
    /// There is no nft, it has no right to it, or another drill runs; in words, with what to do.
    pub(super) fn make(target: &Target, limit: Duration) -> Result<Self, String> {
        // First the hand that mends it.
        let script = format!("trap '' INT TERM HUP; cat >/dev/null; exec nft delete table {TABLE}");
        let watcher = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("no shell to mend it again: {error}"))?;
        let mut cut = Self { watcher };
        if let Err(why) = nft(&rules(target, limit)) {
            // What is there is another drill's, and not ours to mend.
            let _ = cut.watcher.kill();
            return Err(why);
        }
        Ok(cut)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }
}

/// The rules. A table that is there already makes them fail as a whole, and with them the drill.
fn rules(target: &Target, limit: Duration) -> String {
    let seconds = limit.as_secs().max(1);
    let ports = |ports: &BTreeSet<u16>, flags: &str, timeout: &str| {
        let each: Vec<_> = ports
            .iter()
            .map(|port| format!("{port}{timeout}"))
            .collect();
        match each.is_empty() {
            true => format!("{{ type inet_service; {flags} }}"),
            false => format!(
                "{{ type inet_service; {flags} elements = {{ {} }} }}",
                each.join(", ")
            ),
        }
    };
    let Target {
        uid,
        broker,
        theirs,
        ours,
    } = target;
    let timeout = format!(" timeout {seconds}s");
    let theirs = ports(theirs, "flags timeout;", &timeout);
    let ours = ports(ours, "", "");
    format!(
        "create table {TABLE}\n\
         table {TABLE} {{\n\
         set service {{ type uid; flags timeout; elements = {{ {uid}{timeout} }} }}\n\
         set theirs {theirs}\n\
         set ours {ours}\n\
         chain out {{ type filter hook output priority -300; policy accept; meta skuid @service tcp dport {broker} tcp sport != @ours drop; }}\n\
         chain in {{ type filter hook input priority -300; policy accept; tcp sport {broker} tcp dport @theirs drop; }}\n\
         }}\n"
    )
}

fn nft(rules: &str) -> Result<(), String> {
    let child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|error| {
        format!("nft cannot be run ({error}); install it: sudo apt-get install nftables")
    })?;
    let mut stdin = child.stdin.take();
    let written = stdin
        .as_mut()
        .map_or(Ok(()), |stdin| stdin.write_all(rules.as_bytes()));
    drop(stdin);
    let output = child.wait_with_output();
    let output = written
        .and(output)
        .map_err(|error| format!("nft: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let why = String::from_utf8_lossy(&output.stderr);
            let why = why.lines().next().unwrap_or("it says nothing");
            Err(format!(
                "nft refuses the rules: {why}; if another drill runs, wait for its end"
            ))
        }
    }
}

/// The ports on our side of the connections that this process has to `port` elsewhere.
pub(super) fn local_ports(pid: u32, port: u16) -> BTreeSet<u16> {
    let sockets: BTreeSet<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter_map(|target| {
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    ["tcp", "tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok())
        .flat_map(|table| connections(&table, port))
        .filter_map(|(local, inode)| sockets.contains(&inode).then_some(local))
        .collect()
}

/// The local port and the inode of each connection to `port`, from the text of /proc/net/tcp.
fn connections(table: &str, port: u16) -> Vec<(u16, String)> {
    let number = |address: &str| {
        let (_, port) = address.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    };
    let lines = table.lines().skip(1);
    let found = lines.filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, remote) = (number(fields.get(1)?)?, number(fields.get(2)?)?);
        let is_it = remote == port && *fields.get(3)? == ESTABLISHED;
        is_it.then_some((local, (*fields.get(9)?).to_owned()))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_found_by_the_brokers_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:075B 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 11 1\n\
            1: 0100007F:9C40 0100007F:075B 01 00000000:00000000 00:00000000 00000000 999 0 12 1\n\
            2: 0100007F:9C41 0100007F:075B 06 00000000:00000000 00:00000000 00000000 999 0 13 1\n\
            3: short\n";
        assert_eq!(connections(table, 1883), [(40_000, "12".to_owned())]);
        assert_eq!(connections("", 1883), []);
    }

    #[test]
    fn the_connections_of_a_process_are_its_own() {
        let broker = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = broker.local_addr().unwrap().port();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let ours = client.local_addr().unwrap().port();
        assert_eq!(
            local_ports(std::process::id(), port),
            BTreeSet::from([ours])
        );
        assert_eq!(local_ports(std::process::id(), 1), BTreeSet::new());
    }

    #[test]
    fn the_rules_name_nobody_else_and_end_by_themselves() {
        let target = Target {
            uid: 999,
            broker: 8883,
            theirs: BTreeSet::from([40_000]),
            ours: BTreeSet::new(),
        };
        let rules = rules(&target, Duration::from_secs(90));
        for part in [
            "create table inet nightlight_drill",
            "elements = { 999 timeout 90s }",
            "elements = { 40000 timeout 90s }",
            "set ours { type inet_service;  }",
            "tcp dport 8883 tcp sport != @ours drop",
            "tcp sport 8883 tcp dport @theirs drop",
        ] {
            assert!(rules.contains(part), "{part} in {rules}");
        }
    }
}
