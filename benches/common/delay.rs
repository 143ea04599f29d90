//! A long line to the broker: a TCP proxy on loopback that holds every byte back for a time, in both
//! directions, and passes on as many a second as come.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// The line; it lasts as long as the program.
pub struct Line {
    pub port: u16,
}

impl Line {
    /// A line to `port`, on which each direction takes `delay`.
    pub fn to(port: u16, delay: Duration) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let own = listener.local_addr().expect("an address").port();
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                // Without a far end the near one is closed, as it is dropped.
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else {
                    continue;
                };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let ends = (from.try_clone(), to.try_clone());
                    if let (Ok(from), Ok(to)) = ends {
                        carry(from, to, delay);
                    }
                }
            }
        });
        Line { port: own }
    }
}

/// Round trip, and bytes a second of one direction, of a line without anything on it.
pub fn alone(delay: Duration) -> (Duration, f64) {
    const BYTES: usize = 1 << 30;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let line = Line::to(listener.local_addr().expect("an address").port(), delay);
    // The far end sends the first byte back, swallows the rest, and says when it has all.
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut buffer = vec![0; 1 << 16];
        let mut swallowed = stream.read(&mut buffer[..1]).expect("a byte");
        stream.write_all(&[1]).expect("sent back");
        while swallowed < BYTES {
            swallowed += stream.read(&mut buffer).expect("bytes");
        }
        stream.write_all(&[1]).expect("said");
    });
    let mut stream = TcpStream::connect(("127.0.0.1", line.port)).expect("connected");
    let _ = stream.set_nodelay(true);
    let began = Instant::now();
    stream.write_all(&[0]).expect("a byte");
    stream.read_exact(&mut [0]).expect("the byte");
    let round_trip = began.elapsed();
    let block = vec![0; 1 << 16];
    let began = Instant::now();
    for _ in 0..BYTES / block.len() {
        stream.write_all(&block).expect("bytes");
    }
    stream.read_exact(&mut [0]).expect("the end");
    let seconds = (began.elapsed() - round_trip).as_secs_f64();
    (round_trip, BYTES as f64 / seconds)
}

/// One direction: one thread reads and notes when, another writes when it is time.
fn carry(mut from: TcpStream, to: TcpStream, delay: Duration) {
    let (sender, pieces) = channel();
    let _ = to.set_nodelay(true);
    thread::spawn(move || read(&mut from, &sender));
    thread::spawn(move || write(to, &pieces, delay));
}

type Piece = (Instant, Vec<u8>);

fn read(from: &mut TcpStream, pieces: &Sender<Piece>) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let piece = (Instant::now(), buffer[..length].to_vec());
        if pieces.send(piece).is_err() {
            break;
        }
    }
}

fn write(mut to: TcpStream, pieces: &Receiver<Piece>, delay: Duration) {
    for (came, bytes) in pieces {
        thread::sleep((came + delay).saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    // The end of a direction is passed on like its bytes.
    let _ = to.shutdown(Shutdown::Write);
}
