//! Names of the local network (`hub.local`, RFC 6762), asked of avahi-daemon by its socket.
//!
//! A static program has no NSS modules, so its resolver sends such a name to a name server, which does not know
//! it. avahi's socket works for every program, and its answer says on which interface a link-local address is.
//! `/etc/hosts` comes first and the resolver of the system last, in the order of Debian's nsswitch.conf.
//! Blocks for [`PATIENCE`] at most, on a thread of `lookup`.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Where Debian's avahi-daemon listens.
const SOCKET: &str = "/run/avahi-daemon/socket";
const HOSTS: &str = "/etc/hosts";
/// avahi asks the network after 0, 1 and 3 s, and keeps what comes later for the next question.
const PATIENCE: Duration = Duration::from_secs(4);
/// When one family has answered, the other one has so long.
const OTHER_FAMILY: Duration = Duration::from_millis(250);
const WHERE_IS_IT: &str = "is that machine on and in this network, does avahi-daemon run there too, and is this the name in its /etc/hostname?";
/// A line of avahi's has at most a name and an address.
const MAX_ANSWER: usize = 2048;
/// A file of hosts that is larger is not one.
const MAX_HOSTS: u64 = 1 << 20;

/// Whether `host` is a name of the local network.
pub(super) fn is_local(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    let (_, last) = name.rsplit_once('.').unwrap_or(("", name));
    last.eq_ignore_ascii_case("local") && last.len() < name.len()
}

/// The addresses of a name of the local network.
///
/// # Errors
/// What avahi said, what the system said, and what to do.
pub(super) fn resolve(
    host: &str,
    port: u16,
    system: impl FnOnce(&str, u16) -> io::Result<Vec<SocketAddr>>,
) -> io::Result<Vec<SocketAddr>> {
    resolve_by(Path::new(HOSTS), Path::new(SOCKET), host, port, system)
}

fn resolve_by(
    hosts: &Path,
    socket: &Path,
    host: &str,
    port: u16,
    system: impl FnOnce(&str, u16) -> io::Result<Vec<SocketAddr>>,
) -> io::Result<Vec<SocketAddr>> {
    let name = host.strip_suffix('.').unwrap_or(host);
    let noted = in_hosts(hosts, name, port);
    if !noted.is_empty() {
        return Ok(noted);
    }
    let why = match ask(socket, name, port, PATIENCE) {
        Ok(addresses) => return Ok(addresses),
        Err(error) => why_not(&error, socket),
    };
    match system(host, port) {
        Ok(addresses) if !addresses.is_empty() => Ok(addresses),
        _ => Err(io::Error::other(why)),
    }
}

/// What the file of hosts says of a name.
fn in_hosts(hosts: &Path, name: &str, port: u16) -> Vec<SocketAddr> {
    let mut text = String::new();
    let read =
        fs::File::open(hosts).and_then(|file| file.take(MAX_HOSTS).read_to_string(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    let line = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address = words.next()?.parse::<IpAddr>().ok()?;
        let is_it = words.any(|word| word.eq_ignore_ascii_case(name));
        is_it.then_some(SocketAddr::from((address, port)))
    };
    text.lines().filter_map(line).collect()
}

/// Asks for both families at once: IPv4 first in the answer. avahi closes a connection after one answer.
fn ask(socket: &Path, name: &str, port: u16, patience: Duration) -> io::Result<Vec<SocketAddr>> {
    let until = Instant::now() + patience;
    let mut questions = [
        Question::new(socket, "RESOLVE-HOSTNAME-IPV4", name)?,
        Question::new(socket, "RESOLVE-HOSTNAME-IPV6", name)?,
    ];
    let mut limit = until;
    loop {
        let open: Vec<usize> = (0..questions.len())
            .filter(|at| questions[*at].answer.is_none())
            .collect();
        let left = limit.saturating_duration_since(Instant::now());
        if open.is_empty() || left.is_zero() {
            break;
        }
        let mut waits: Vec<PollFd<'_>> = open
            .iter()
            .map(|at| PollFd::new(&questions[*at].stream, PollFlags::IN))
            .collect();
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut waits, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = waits
            .iter()
            .map(|wait| !wait.revents().is_empty())
            .collect();
        for (at, _) in open.iter().zip(ready).filter(|(_, is_ready)| *is_ready) {
            questions[*at].read();
            if matches!(questions[*at].answer, Some(Ok(_))) {
                limit = limit.min(Instant::now() + OTHER_FAMILY);
            }
        }
    }
    let mut addresses = Vec::new();
    let mut why = None;
    for question in questions {
        match question.answer {
            Some(Ok(address)) => addresses.push(with_port(address, port)),
            Some(Err(error)) => why = why.or(Some(error)),
            None => {}
        }
    }
    match (addresses.is_empty(), why) {
        (false, _) => Ok(addresses),
        (true, Some(why)) => Err(io::Error::other(why)),
        (true, None) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// One question to avahi, and its answer.
struct Question {
    stream: UnixStream,
    said: Vec<u8>,
    /// The address and the interface where it is, or avahi's words.
    answer: Option<Result<(IpAddr, u32), String>>,
}

impl Question {
    fn new(socket: &Path, command: &str, name: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_nonblocking(true)?;
        stream.write_all(format!("{command} {name}\n").as_bytes())?;
        Ok(Self {
            stream,
            said: Vec::new(),
            answer: None,
        })
    }

    fn read(&mut self) {
        let mut bytes = [0; 512];
        let is_over = match self.stream.read(&mut bytes) {
            Ok(0) => true,
            Ok(count) => {
                self.said.extend_from_slice(&bytes[..count]);
                self.said.len() > MAX_ANSWER
            }
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        };
        let end = self.said.iter().position(|byte| *byte == b'\n');
        if end.is_some() || is_over {
            let line = &self.said[..end.unwrap_or(self.said.len())];
            self.answer = Some(understood(&String::from_utf8_lossy(line)));
        }
    }
}

/// `+ INTERFACE PROTOCOL NAME ADDRESS`, or `-CODE WORDS`.
fn understood(line: &str) -> Result<(IpAddr, u32), String> {
    if let Some(rest) = line.strip_prefix('+') {
        let words: Vec<&str> = rest.split_whitespace().collect();
        if let [interface, _, _, address] = words[..]
            && let (Ok(interface), Ok(address)) = (interface.parse(), address.parse())
        {
            return Ok((address, interface));
        }
    }
    let words = line
        .strip_prefix('-')
        .map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' '));
    match words {
        Some(words) if !words.is_empty() => Err(format!("avahi says \"{}\"", shown(words))),
        _ => Err(format!(
            "avahi's answer \"{}\" is not understood",
            shown(line)
        )),
    }
}

fn shown(text: &str) -> String {
    let cut: String = text.trim().chars().take(80).collect();
    cut.escape_debug().to_string()
}

fn with_port((address, interface): (IpAddr, u32), port: u16) -> SocketAddr {
    match address {
        IpAddr::V6(address) if is_link_local(address) => {
            SocketAddrV6::new(address, port, 0, interface).into()
        }
        address => (address, port).into(),
    }
}

fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

fn why_not(error: &io::Error, socket: &Path) -> String {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
            "it ends in .local, and avahi-daemon, which answers such names, does not run here ({}); \
             sudo apt install avahi-daemon, or write the broker's address",
            socket.display()
        ),
        io::ErrorKind::PermissionDenied => format!(
            "we may not ask avahi-daemon ({}: {error}); check the rights of that socket, or write the broker's address",
            socket.display()
        ),
        io::ErrorKind::TimedOut => format!(
            "avahi-daemon has no answer after {} s; {WHERE_IS_IT}",
            PATIENCE.as_secs()
        ),
        _ => format!("{error}; {WHERE_IS_IT}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::thread;

    use super::*;

    /// avahi's socket, answering each question as `answer` says; `None` is silence.
    fn avahi(folder: &Path, answer: fn(&str) -> Option<&'static str>) -> PathBuf {
        let path = folder.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                match answer(line.trim_end()) {
                    Some(said) => drop(stream.write_all(said.as_bytes())),
                    None => silent.push(stream),
                }
            }
        });
        path
    }

    fn nobody(_: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        Err(io::Error::other("not known"))
    }

    fn asked(socket: &Path, host: &str) -> Result<Vec<SocketAddr>, String> {
        resolve_by(Path::new("/nowhere"), socket, host, 1883, nobody)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn names_of_the_local_network_are_known_by_their_end() {
        for name in ["hub.local", "HUB.Local.", "a.b.local"] {
            assert!(is_local(name), "{name}");
        }
        for name in [
            "local",
            ".",
            "hub",
            "hub.local.example",
            "hublocal",
            "local.",
        ] {
            assert!(!is_local(name), "{name}");
        }
    }

    #[test]
    fn avahi_is_asked_for_both_families_and_its_interface_is_the_scope() {
        let folder = tempfile::tempdir().unwrap();
        let socket = avahi(folder.path(), |line| match line {
            "RESOLVE-HOSTNAME-IPV4 hub.local" => Some("+ 2 0 hub.local 192.0.2.7\n"),
            "RESOLVE-HOSTNAME-IPV6 hub.local" => Some("+ 3 1 hub.local fe80::7\n"),
            _ => Some("-1 unexpected\n"),
        });
        let addresses = asked(&socket, "hub.local.").unwrap();
        let scoped = SocketAddrV6::new("fe80::7".parse().unwrap(), 1883, 0, 3);
        assert_eq!(
            addresses,
            ["192.0.2.7:1883".parse().unwrap(), scoped.into()]
        );
    }

    #[test]
    fn one_family_is_enough_and_the_other_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let socket = avahi(folder.path(), |line| match line.contains("IPV6") {
            true => Some("+ 2 1 hub.local 2001:db8::7\n"),
            false => None,
        });
        let begun = Instant::now();
        let addresses = asked(&socket, "hub.local").unwrap();
        assert_eq!(addresses, ["[2001:db8::7]:1883".parse().unwrap()]);
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    }

    #[test]
    fn what_avahi_says_is_repeated_and_silence_has_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let socket = avahi(folder.path(), |_| Some("-15 Timeout reached\n"));
        let why = asked(&socket, "hub.local").unwrap_err();
        assert!(why.contains("avahi says \"Timeout reached\""), "{why}");
        let folder = tempfile::tempdir().unwrap();
        let socket = avahi(folder.path(), |_| Some("\u{1b}[2J what?"));
        let why = asked(&socket, "hub.local").unwrap_err();
        assert!(
            why.contains("is not understood") && !why.contains('\u{1b}'),
            "{why}"
        );
        let folder = tempfile::tempdir().unwrap();
        let socket = avahi(folder.path(), |_| None);
        let error = ask(&socket, "hub.local", 1883, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // One that never ends its line is cut short.
        let folder = tempfile::tempdir().unwrap();
        let socket = avahi(folder.path(), |_| {
            Some(concat!("+", include_str!("mdns.rs")))
        });
        assert!(asked(&socket, "hub.local").is_err());
    }

    #[test]
    fn without_avahi_the_system_is_asked_and_the_words_say_what_to_install() {
        let folder = tempfile::tempdir().unwrap();
        let none = folder.path().join("none");
        let why = asked(&none, "hub.local").unwrap_err();
        assert!(why.contains("apt install avahi-daemon"), "{why}");
        let address: SocketAddr = "192.0.2.9:1883".parse().unwrap();
        let system = |_: &str, _| Ok(vec![address]);
        let found = resolve_by(Path::new("/nowhere"), &none, "hub.local", 1883, system);
        assert_eq!(found.unwrap(), [address]);
    }

    #[test]
    fn a_line_in_the_file_of_hosts_comes_first() {
        let folder = tempfile::tempdir().unwrap();
        let hosts = folder.path().join("hosts");
        let text = "# 192.0.2.1 hub.local\n192.0.2.8\tother hub.LOCAL # here\nnonsense hub.local\n";
        fs::write(&hosts, text).unwrap();
        let found = resolve_by(
            &hosts,
            &folder.path().join("none"),
            "hub.local",
            1883,
            nobody,
        );
        assert_eq!(found.unwrap(), ["192.0.2.8:1883".parse().unwrap()]);
    }
}
