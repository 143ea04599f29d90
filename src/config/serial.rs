//! What `{serial}` in `device.id` stands for: the serial number of the board, so that a cloned card is not a twin.
//!
//! A Raspberry Pi tells its number in the device tree. A board without one (a PC, a virtual machine) has only the
//! machine id of its system; that is confidential (machine-id(5)), so a key is derived from it in the way of
//! sd_id128_get_machine_app_specific(3): HMAC-SHA256 of an id of our own, the machine id being the key.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;

use ring::hmac;

/// Replaced in `device.id`.
pub(super) const PLACEHOLDER: &str = "{serial}";
const BOARD: &str = "proc/device-tree/serial-number";
const MACHINE: [&str; 2] = ["etc/machine-id", "var/lib/dbus/machine-id"];
/// Of nightlight alone: other programs derive other ids from the same machine.
const OUR_ID: u128 = 0x04c5_e458_b9a8_4b73_aa93_82d1_d0b0_db5d;
/// As many hexadecimal digits as a board's number has.
const DIGITS: usize = 16;
/// More than any of these files has.
const MAX_FILE: u64 = 4096;

/// Where a serial number is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The board tells it.
    Board,
    /// The board tells none; made from the machine id.
    MachineId,
}

/// The serial number of the machine whose files are below `root`: lower-case letters and digits.
///
/// # Errors
/// Why there is none, with what to do.
pub(super) fn of(root: &Path) -> Result<(String, Origin), String> {
    let board = read(&root.join(BOARD))?;
    if let Some(serial) = board.as_deref().and_then(of_board) {
        return Ok((serial, Origin::Board));
    }
    for file in MACHINE {
        let text = read(&root.join(file))?;
        if let Some(id) = text.as_deref().and_then(machine_id) {
            return Ok((derived(id), Origin::MachineId));
        }
    }
    Err(format!(
        "has {PLACEHOLDER} in it, and this machine tells no serial number: neither /{BOARD} nor /{} has one; \
         write a name in its place",
        MACHINE[0]
    ))
}

/// A file that is there and cannot be read is no reason to take another name.
fn read(file: &Path) -> Result<Option<String>, String> {
    let mut bytes = Vec::new();
    let read = fs::File::open(file).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(format!(
            "has {PLACEHOLDER} in it, and {} cannot be read: {error}; check its rights",
            file.display()
        )),
    }
}

/// The device tree ends its texts with a NUL; boards without a number tell zeros.
fn of_board(text: &str) -> Option<String> {
    let serial = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    let is_plain = serial.bytes().all(|b| b.is_ascii_alphanumeric());
    let is_number = serial.bytes().any(|b| b != b'0');
    (is_plain && is_number && serial.len() <= 64).then(|| serial.to_ascii_lowercase())
}

/// 32 hexadecimal digits; `uninitialized` stands there until the first start is done.
fn machine_id(text: &str) -> Option<u128> {
    let text = text.trim();
    let is_id = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let id = u128::from_str_radix(text, 16).ok()?;
    (is_id && id != 0).then_some(id)
}

fn derived(machine_id: u128) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &machine_id.to_be_bytes());
    let tag = hmac::sign(&key, &OUR_ID.to_be_bytes());
    let mut id: String = tag
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    // systemd makes a UUID of version 4 of it.
    id.replace_range(12..13, "4");
    id.truncate(DIGITS);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const ID: &str = "3d1219c7c4c5404aaa1f6d2a48adfda4";

    #[test]
    fn a_board_tells_its_number_and_the_card_has_no_part_in_it() {
        let of_a_pi = "10000000ABCDEF01\0";
        let pi = machine(&[(BOARD, of_a_pi), (MACHINE[0], ID)]);
        assert_eq!(
            of(pi.path()),
            Ok(("10000000abcdef01".into(), Origin::Board))
        );
    }

    #[test]
    fn a_machine_without_one_gets_what_systemd_derives_and_the_id_itself_is_not_told() {
        for board in ["0000000000000000\0", "", "\0", "To be filled\0"] {
            let pc = machine(&[(BOARD, board), (MACHINE[0], &format!("{ID}\n"))]);
            // `systemd-id128 machine-id --app-specific=04c5e458b9a84b73aa9382d1d0b0db5d` on a machine of that id.
            let expected = "983e58f595824228".to_owned();
            assert_eq!(
                of(pc.path()),
                Ok((expected, Origin::MachineId)),
                "{board:?}"
            );
        }
        let dbus = machine(&[(MACHINE[0], "uninitialized\n"), (MACHINE[1], ID)]);
        assert!(matches!(of(dbus.path()), Ok((_, Origin::MachineId))));
    }

    #[test]
    fn a_machine_that_tells_nothing_is_told_so() {
        for files in [
            &[][..],
            &[(MACHINE[0], "uninitialized\n")],
            &[(MACHINE[0], "")],
        ] {
            let why = of(machine(files).path()).unwrap_err();
            assert!(
                why.contains("/etc/machine-id") && why.contains("write a name"),
                "{why}"
            );
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_gives_no_other_name() {
        // A folder in its place: there, and no file, also for root.
        let pi = machine(&[("proc/device-tree/serial-number/x", ""), (MACHINE[0], ID)]);
        let why = of(pi.path()).unwrap_err();
        assert!(why.contains("serial-number cannot be read"), "{why}");
    }
}
