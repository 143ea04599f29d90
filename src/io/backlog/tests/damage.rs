//! Stores that were damaged, rolled back, cut short or replaced: what is left is salvaged, the rest is told as lost.

use super::*;

/// Nothing is known, so nothing can be reported; and nothing is made up.
#[test]
fn a_folder_that_is_gone_with_its_checkpoint_is_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    let settings = filled(&folder, true);
    fs::remove_dir_all(&settings.path).unwrap();
    let mut open = Open::new(&settings, 2);
    assert_eq!((open.opened.run_number, open.opened.previous), (1, None));
    assert_eq!(open.losses(), []);
    assert_eq!(open.store([1]), 1);
    assert_eq!(open.seqs(), [1]);
    open.close();
    assert_eq!(quarantined(&settings), 0);
}

/// What version 1 has left is moved aside, and its records are delivered all the same.
#[test]
fn a_store_of_an_earlier_version_is_moved_aside() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    let store = settings.path.join("store");
    fs::create_dir_all(&store).unwrap();
    let db = sled::open(&store).unwrap();
    db.insert(b"s", b"whatever version 1 kept here").unwrap();
    let run = Uuid::from_u128(9);
    let of = format::Header::of_chunks(4, run, BOOT);
    let lines: Vec<_> = (1..=5).map(|seq| chunk::line(&reading(run, seq))).collect();
    let (_, mut value) = chunk::pack_chunk(&of, &lines, 128).unwrap();
    value[4] = 1;
    let crc = [&value[..68], &value[72..]].concat();
    let crc = crc32fast::hash(&crc).to_be_bytes();
    value[68..72].copy_from_slice(&crc);
    db.insert(b"c whatever", value).unwrap();
    db.flush().unwrap();
    drop(db);
    let mut open = Open::new(&settings, 1);
    assert_eq!(open.seqs(), [1, 2, 3, 4, 5]);
    assert_eq!(open.opened.run_number, 5);
    open.close();
    assert_eq!(quarantined(&settings), 1);
}

#[test]
fn flipped_bytes_and_zeroed_pages_are_salvaged() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut kept = 0;
    let mut moved = 0;
    for round in 0..24 {
        let folder = tempfile::tempdir().unwrap();
        let settings = filled(&folder, round % 2 == 0);
        let db = settings.path.join("store/db");
        let mut bytes = fs::read(&db).unwrap();
        let used = bytes.iter().rposition(|b| *b != 0).unwrap();
        let at = random.usize(..used);
        if round % 4 < 2 {
            bytes[at] ^= 1 << random.u8(..8);
        } else {
            let at = at & !4095;
            let end = (at + 4096).min(bytes.len());
            bytes[at..end].fill(0);
        }
        fs::write(&db, &bytes).unwrap();
        kept += opens_and_accounts(&settings);
        moved += quarantined(&settings);
    }
    assert!(moved > 5, "{moved}");
    println!("{kept} of 24000 kept, {moved} moved aside");
    assert!(kept > 24 * 900, "{kept}");
}

/// A store that was killed, with 20 records of run 2, of which the commit of the tenth is damaged: sled
/// takes it for the end of its log, and would forget the ten after it.
fn damaged_in_its_end(folder: &TempDir) -> config::Backlog {
    let source = tempfile::tempdir().unwrap();
    let settings = filled(&source, false);
    let mut open = Open::new(&settings, 2);
    for seq in 1..=20 {
        open.store([seq]);
    }
    let other = self::settings(folder);
    copy(&settings.path, &other.path);
    open.close();
    let checkpoint = Checkpoint::read(&other.path.join("checkpoint"));
    assert!(checkpoint.runs[&2].high < 10);
    let db = other.path.join("store/db");
    let mut bytes = fs::read(&db).unwrap();
    // The chunk as it was when it had ten records.
    let mut key = b"nL\xB5\x10\x02\x02\x00\x0a".to_vec();
    key.extend_from_slice(&2_u64.to_be_bytes());
    let mut damaged = 0;
    for at in 0..bytes.len() - 80 {
        if bytes[at..].starts_with(&key) && bytes[at + 56..at + 64] == 10_u64.to_be_bytes() {
            bytes[at + 75] ^= 1;
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    fs::write(&db, &bytes).unwrap();
    other
}

/// What is left and what is lost of run 2, and the stores moved aside.
fn left_of_run_2(settings: &config::Backlog) -> (usize, u64, usize) {
    let mut open = Open::new(settings, 3);
    let left = open.all().iter().filter(|key| key.run_number == 2).count();
    let lost: u64 = open.losses().iter().map(|loss| loss.count).sum();
    open.close();
    (left, lost, quarantined(settings))
}

#[test]
fn a_store_rolled_back_by_less_than_its_checkpoint_knows_is_noticed_by_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let settings = damaged_in_its_end(&folder);
    // Each commit wrote the chunk anew, so that the later ones have it all.
    assert_eq!(left_of_run_2(&settings), (20, 0, 1));
}

/// Found by cutting the power while a store was opened: nothing of the copy was on the disk.
#[test]
fn a_part_of_a_copy_of_the_log_is_not_taken_for_the_copy() {
    for part in [0, 3, 10_000] {
        let folder = tempfile::tempdir().unwrap();
        let settings = damaged_in_its_end(&folder);
        let log = fs::read(settings.path.join("store/db")).unwrap();
        fs::write(settings.path.join("store.before"), &log[..part]).unwrap();
        assert_eq!(left_of_run_2(&settings), (20, 0, 1), "{part} bytes");
    }
}

#[test]
fn a_truncated_file_is_salvaged() {
    for part in [2, 3, 10] {
        let folder = tempfile::tempdir().unwrap();
        let settings = filled(&folder, part == 3);
        let db = settings.path.join("store/db");
        let bytes = fs::read(&db).unwrap();
        let used = bytes.iter().rposition(|b| *b != 0).unwrap();
        fs::write(&db, &bytes[..used - used / part]).unwrap();
        opens_and_accounts(&settings);
    }
}

#[test]
fn rubbish_in_any_file_of_the_store_is_survived() {
    for closed in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let settings = filled(&folder, closed);
        for name in files(&settings.path.join("store")).into_keys() {
            let again = tempfile::tempdir().unwrap();
            let other = self::settings(&again);
            copy(&settings.path, &other.path);
            let name = other.path.join(name.strip_prefix(&settings.path).unwrap());
            fs::write(&name, b"rubbish and nothing but rubbish").unwrap();
            opens_and_accounts(&other);
        }
    }
}

#[test]
fn a_file_in_the_place_of_the_store_is_moved_aside() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder);
    fs::create_dir_all(&settings.path).unwrap();
    fs::write(settings.path.join("store"), b"rubbish").unwrap();
    let mut open = Open::new(&settings, 1);
    assert_eq!(open.opened.records, 0);
    assert_eq!(open.store([1]), 1);
    open.close();
    assert_eq!(quarantined(&settings), 1);
}

#[test]
fn a_store_that_is_gone_is_a_loss_and_ordinals_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let settings = filled(&folder, true);
    fs::remove_dir_all(settings.path.join("store")).unwrap();
    let mut open = Open::new(&settings, 2);
    assert_eq!(open.opened.run_number, 2);
    assert_eq!(open.opened.previous, Some((Uuid::from_u128(1), 1000)));
    let losses = open.losses();
    assert_eq!(losses.len(), 1);
    assert_eq!(
        (losses[0].from_seq, losses[0].to_seq, losses[0].count),
        (1, 1000, 1000)
    );
    assert_eq!(losses[0].reason, "damaged");
    open.close();
}

#[test]
fn a_half_written_snapshot_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let settings = filled(&folder, false);
    let half = settings.path.join("store/snap.0000000000000123.generating");
    fs::write(&half, b"half").unwrap();
    assert_eq!(opens_and_accounts(&settings), 1000);
    assert_eq!(quarantined(&settings), 0);
}

/// Found by cutting the power while a store was opened: the new snapshot had not got its name yet, but
/// sled had already zeroed what the older one needs, and nothing opened with that.
#[test]
fn a_whole_snapshot_that_has_not_got_its_name_yet_is_not_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    let settings = filled(&folder, true);
    Open::new(&settings, 2).close();
    let store = settings.path.join("store");
    let entries = fs::read_dir(&store).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    let named = paths
        .find(|path| path.to_string_lossy().contains("/snap."))
        .unwrap();
    let bytes = fs::read(&named).unwrap();
    let unnamed = PathBuf::from(format!("{}.generating", named.display()));
    fs::rename(&named, &unnamed).unwrap();
    finish_snapshots(&store).unwrap();
    assert_eq!(fs::read(&named).unwrap(), bytes);
    assert!(!unnamed.exists());
    fs::write(&unnamed, &bytes[..bytes.len() - 1]).unwrap();
    finish_snapshots(&store).unwrap();
    assert_eq!(fs::read(&named).unwrap(), bytes);
    assert!(!unnamed.exists());
    assert_eq!(opens_and_accounts(&settings), 1000);
    assert_eq!(quarantined(&settings), 0);
}

#[test]
fn a_store_rolled_back_to_nothing_is_noticed_by_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let settings = filled(&folder, true);
    let empty = tempfile::tempdir().unwrap();
    let mut other = Open::new(&self::settings(&empty), 1);
    other.store([1]);
    let store = settings.path.join("store");
    let kept_db = fs::read(store.join("db")).unwrap();
    fs::remove_dir_all(&store).unwrap();
    copy(&self::settings(&empty).path.join("store"), &store);
    other.close();
    // The records lie in a file that sled does not look at.
    fs::write(store.join("stray"), kept_db).unwrap();
    assert_eq!(opens_and_accounts(&settings), 1000);
    assert_eq!(quarantined(&settings), 1);
}

#[test]
fn a_salvage_interrupted_by_a_power_cut_is_begun_again_or_ended() {
    let folder = tempfile::tempdir().unwrap();
    let settings = filled(&folder, true);
    let store = settings.path.join("store");
    // Cut while the new one was written: it is thrown away.
    copy(&store, &settings.path.join("store.new"));
    fs::write(settings.path.join("store.new/db"), b"half").unwrap();
    assert_eq!(opens_and_accounts(&settings), 1000);
    // Cut between the two renames: the new one is taken.
    fs::rename(&store, settings.path.join("store.new")).unwrap();
    let mut open = Open::new(&settings, 3);
    assert_eq!(open.opened.records, 1010);
    open.store([1]);
    open.close();
    assert!(!settings.path.join("store.new").exists());
}
