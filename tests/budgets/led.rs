//! All that the first decision needs, and nothing else: writes the LED's file, the only argument. What
//! the daemon's start is compared with.

fn main() -> std::io::Result<()> {
    let path = std::env::args_os().nth(1).unwrap_or_default();
    std::fs::write(path, "1\n")
}
