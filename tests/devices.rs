//! The devices with real files: what a test on a desk can know of a sensor and an LED.
#![allow(clippy::unwrap_used, clippy::panic)] // A test that fails may say so where it stands.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use nightlight::config::{self, AtExit, LedDriver, SensorDriver};
use nightlight::io::device_thread::MAX_HUNG;
use nightlight::io::led::{Led, LedError, LedThread};
use nightlight::io::sensor::{self, Reader, Sensor, SensorError};
use nightlight::io::systemd;
use nightlight::logic::Input;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, error::TryRecvError, unbounded_channel};

/// Long enough for a slow machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(20);

fn sensor(driver: SensorDriver, path: PathBuf) -> config::Sensor {
    config::Sensor {
        driver,
        bus: 250,
        address: None,
        channel: 0,
        path,
        speed: 1.0,
        interval: Duration::from_secs(5),
    }
}

fn led(path: &Path, active_low: bool, at_exit: AtExit) -> config::Led {
    config::Led {
        driver: LedDriver::Sysfs,
        pin: 5,
        active_low,
        path: path.to_owned(),
        at_exit,
    }
}

/// A folder with a file in it.
fn file(name: &str, content: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    (dir, path)
}

fn pipe() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    let made = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    (dir, path)
}

fn answer(inputs: &mut UnboundedReceiver<Input>) -> Input {
    let begun = Instant::now();
    loop {
        match inputs.try_recv() {
            Ok(input) => return input,
            Err(TryRecvError::Empty) => std::thread::sleep(Duration::from_millis(1)),
            Err(TryRecvError::Disconnected) => panic!("the reader has gone"),
        }
        assert!(begun.elapsed() < PATIENCE, "no answer");
    }
}

fn failure(inputs: &mut UnboundedReceiver<Input>) -> String {
    match answer(inputs) {
        Input::ReadFailed(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_request_has_one_answer() {
    let (_dir, path) = file("light", "1\n");
    let (sender, mut inputs) = unbounded_channel();
    let mut reader = Reader::start(&sensor(SensorDriver::Iio, path.clone()), sender);
    for light in 1..200 {
        fs::write(&path, format!("{light}\n")).unwrap();
        reader.read();
        assert_eq!(answer(&mut inputs), Input::Read(f64::from(light)));
    }
    assert_eq!(inputs.try_recv(), Err(TryRecvError::Empty));
}

#[test]
fn a_file_that_is_rewritten_under_the_reader_is_read() {
    let (_dir, path) = file("light", "5\n");
    let mut sensor = sensor::open(&sensor(SensorDriver::Iio, path.clone())).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let writer = {
        let done = done.clone();
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                fs::write(&path, "5\n").unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        })
    };
    for _ in 0..500 {
        assert_eq!(sensor.read().unwrap(), 5.0);
    }
    done.store(true, Ordering::Relaxed);
    writer.join().unwrap();
}

#[test]
fn an_absent_sensor_fails_the_reading_and_is_found_when_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("light.csv");
    let (sender, mut inputs) = unbounded_channel();
    let mut reader = Reader::start(&sensor(SensorDriver::Trace, path.clone()), sender);
    reader.read();
    assert!(failure(&mut inputs).contains("does not exist"));
    fs::write(&path, "time,lux\n0,1\n1,nonsense\n").unwrap();
    reader.read();
    let why = failure(&mut inputs);
    assert!(why.contains("light.csv:3: "), "{why}");
    fs::write(&path, "time,lux\n0,77\n").unwrap();
    reader.read();
    assert_eq!(answer(&mut inputs), Input::Read(77.0));
}

#[test]
fn a_missing_bus_fails_the_reading_with_the_remedy() {
    let (sender, mut inputs) = unbounded_channel();
    let mut reader = Reader::start(&sensor(SensorDriver::GroveHat, PathBuf::new()), sender);
    reader.read();
    let why = failure(&mut inputs);
    assert!(why.contains("/dev/i2c-250"), "{why}");
    assert!(why.contains("dtparam=i2c_arm=on"), "{why}");
}

#[test]
fn a_hung_sensor_blocks_nothing_but_its_thread() {
    let (_dir, path) = pipe();
    let (sender, mut inputs) = unbounded_channel();
    let begun = Instant::now();
    let mut reader = Reader::start(&sensor(SensorDriver::Iio, path.clone()), sender);
    for _ in 0..1000 {
        reader.read();
    }
    assert!(begun.elapsed() < Duration::from_secs(2));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(inputs.try_recv(), Err(TryRecvError::Empty));
    // It comes to life: one answer for all of them.
    fs::write(&path, "5\n").unwrap();
    assert_eq!(answer(&mut inputs), Input::Read(5.0));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(inputs.try_recv(), Err(TryRecvError::Empty));
    // And dropping a hung one does not wait either.
    reader.read();
    drop(reader);
}

#[test]
fn a_reading_that_hangs_is_given_up_and_made_anew_but_not_without_end() {
    let (sender, mut inputs) = unbounded_channel();
    let (let_go, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let open = move || -> Result<Box<dyn Sensor>, SensorError> {
        let _ = gate.lock().unwrap().recv();
        Err(SensorError::Configured("late".to_owned()))
    };
    let mut reader = Reader::with(open, sender);
    for _ in 0..MAX_HUNG {
        reader.read();
        assert_eq!(inputs.try_recv(), Err(TryRecvError::Empty));
        reader.give_up();
    }
    for _ in 0..3 {
        reader.read();
        let why = failure(&mut inputs);
        assert!(why.contains("hang in its driver"), "{why}");
        // There is nothing to give up, and that does no harm.
        reader.give_up();
    }
    // They come back: what they say does not count, and there is room again.
    drop(let_go);
    loop {
        reader.read();
        let why = failure(&mut inputs);
        if why == "late" {
            break;
        }
        assert!(why.contains("hang in its driver"), "{why}");
        std::thread::yield_now();
    }
}

#[test]
fn an_led_thread_finds_switches_reads_back_and_leaves() {
    let (_dir, path) = file("brightness", "1\n");
    let (sender, mut inputs) = unbounded_channel();
    let (mut thread, found) = LedThread::start(&led(&path, false, AtExit::Off), sender);
    assert_eq!(found, Ok(true));
    for (led_on, was) in [(true, true), (false, true), (true, false)] {
        thread.set(led_on);
        let was = Some(was);
        assert_eq!(answer(&mut inputs), Input::LedWritten { led_on, was });
    }
    fs::write(&path, "0\n").unwrap();
    thread.set(true);
    let (led_on, was) = (true, Some(false));
    assert_eq!(answer(&mut inputs), Input::LedWritten { led_on, was });
    fs::remove_file(&path).unwrap();
    thread.set(true);
    assert!(matches!(
        answer(&mut inputs),
        Input::LedFailed { seen: None, .. }
    ));
    fs::write(&path, "0\n").unwrap();
    thread.set(true);
    assert_eq!(answer(&mut inputs), Input::LedWritten { led_on, was });
    assert_eq!(thread.leave(), Ok(()));
    assert_eq!(fs::read_to_string(&path).unwrap(), "0\n");
}

/// Tells when it is asked, and answers when it is let.
struct Gate {
    asked: mpsc::Sender<()>,
    let_go: mpsc::Receiver<f64>,
}

impl Sensor for Gate {
    fn read(&mut self) -> Result<f64, SensorError> {
        let over = |_| SensorError::Configured("the test is over".to_owned());
        let _ = self.asked.send(());
        self.let_go.recv().map_err(over)
    }
}

#[test]
fn asking_while_a_reading_is_under_way_does_nothing() {
    let (sender, mut inputs) = unbounded_channel();
    let (asked, was_asked) = mpsc::channel();
    let (let_it_go, let_go) = mpsc::channel();
    let gate = Mutex::new(Some(Gate { asked, let_go }));
    let open = move || -> Result<Box<dyn Sensor>, SensorError> {
        Ok(Box::new(gate.lock().unwrap().take().unwrap()))
    };
    let mut reader = Reader::with(open, sender);
    for light in [1.0, 2.0] {
        reader.read();
        was_asked.recv_timeout(PATIENCE).unwrap();
        for _ in 0..10 {
            reader.read();
        }
        let_it_go.send(light).unwrap();
        assert_eq!(answer(&mut inputs), Input::Read(light));
    }
    drop((reader, let_it_go));
    // The thread ends, and with it the gate: nothing was asked beside the two.
    assert_eq!(was_asked.iter().count(), 0);
}

struct Scripted(Arc<AtomicUsize>);

impl Sensor for Scripted {
    fn read(&mut self) -> Result<f64, SensorError> {
        match self.0.fetch_add(1, Ordering::SeqCst) {
            1 => panic!("a driver with a bug"),
            2 => Err(SensorError::Configured("broken".to_owned())),
            nth => Ok(nth as f64),
        }
    }
}

#[test]
fn a_driver_that_panics_costs_one_answer_and_one_that_fails_is_opened_again() {
    let reads = Arc::new(AtomicUsize::new(0));
    let opened = Arc::new(AtomicUsize::new(0));
    let (sender, mut inputs) = unbounded_channel();
    let counted = opened.clone();
    let open = move || -> Result<Box<dyn Sensor>, SensorError> {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Scripted(reads.clone())))
    };
    let mut reader = Reader::with(open, sender);
    reader.read();
    assert_eq!(answer(&mut inputs), Input::Read(0.0));
    reader.read();
    assert!(failure(&mut inputs).contains("panicked"));
    reader.read();
    assert_eq!(failure(&mut inputs), "broken");
    for light in [3.0, 4.0] {
        reader.read();
        assert_eq!(answer(&mut inputs), Input::Read(light));
    }
    assert_eq!(opened.load(Ordering::SeqCst), 3);
}

#[test]
fn the_simulated_sensor_begins_at_noon() {
    let mut sensor = sensor::open(&sensor(SensorDriver::Simulated, PathBuf::new())).unwrap();
    assert!(sensor.read().unwrap() > 400.0);
}

#[test]
fn an_led_file_holds_exactly_one_line_after_each_switch() {
    for before in ["0\n", "0", "1\n", "255\n", "000000\n\n\n", ""] {
        let (_dir, path) = file("brightness", before);
        let (mut led, on) = Led::open(&led(&path, false, AtExit::Keep)).unwrap();
        assert_eq!(on, ["1\n", "255\n"].contains(&before), "{before:?}");
        for on in [true, false, false, true] {
            led.set(on).unwrap();
            let text = if on { "1\n" } else { "0\n" };
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        led.leave().unwrap();
        drop(led);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
    }
}

#[test]
fn opening_an_led_changes_nothing_unless_it_says_nothing() {
    for (before, active_low, after, is_on) in [
        ("1\n", false, "1\n", true),
        ("1\n", true, "1\n", false),
        ("0\n", true, "0\n", true),
        ("", false, "0\n", false),
        ("", true, "1\n", false),
    ] {
        let (_dir, path) = file("brightness", before);
        let (_led, on) = Led::open(&led(&path, active_low, AtExit::Off)).unwrap();
        assert_eq!(on, is_on, "{before:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), after);
    }
}

#[test]
fn full_brightness_is_what_the_kernel_says() {
    let (dir, path) = file("brightness", "0\n");
    fs::write(dir.path().join("max_brightness"), "255\n").unwrap();
    let (mut led, _) = Led::open(&led(&path, false, AtExit::Off)).unwrap();
    led.set(true).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "255\n");
    led.leave().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "0\n");
}

#[test]
fn an_active_low_led_is_on_when_dark() {
    let (_dir, path) = file("brightness", "0\n");
    let (mut led, on) = Led::open(&led(&path, true, AtExit::On)).unwrap();
    assert!(on);
    led.set(false).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
    led.leave().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "0\n");
}

#[test]
fn an_led_that_cannot_be_is_refused_with_a_remedy_and_can_be_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("brightness");
    let wanted = led(&path, false, AtExit::Keep);
    let error = Led::open(&wanted).unwrap_err();
    assert!(matches!(error, LedError::Missing(_)), "{error}");
    assert!(error.to_string().contains("`led.path`"));
    assert!(!path.exists());
    let precious = "root:x:0:0:root:/root:/bin/bash\n".repeat(9);
    fs::write(&path, &precious).unwrap();
    let error = Led::open(&wanted).unwrap_err();
    assert!(matches!(error, LedError::Invalid { .. }), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), precious);
    fs::write(&path, "0\n").unwrap();
    let (mut led, _) = Led::open(&wanted).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(matches!(led.set(true), Err(LedError::Missing(_))));
    assert!(!path.exists());
    fs::write(&path, "0\n").unwrap();
    led.set(true).unwrap();
}

#[test]
fn a_pipe_or_a_folder_is_no_led_and_does_not_block() {
    let (dir, path) = pipe();
    for path in [&path, dir.path()] {
        let error = Led::open(&led(path, false, AtExit::Keep)).unwrap_err();
        assert!(matches!(error, LedError::NotAFile(_)), "{error}");
    }
}

#[test]
fn nobody_ever_finds_the_led_file_empty() {
    let (_dir, path) = file("brightness", "0\n");
    let (mut led, _) = Led::open(&led(&path, false, AtExit::Keep)).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (path, done) = (path.clone(), done.clone());
        std::thread::spawn(move || {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                let text = fs::read_to_string(&path).unwrap();
                assert!(["0\n", "1\n"].contains(&text.as_str()), "{text:?}");
                looks += 1;
            }
            looks
        })
    };
    for nth in 0..20_000 {
        led.set(nth % 2 == 0).unwrap();
    }
    done.store(true, Ordering::Relaxed);
    assert!(watcher.join().unwrap() > 100);
}

#[test]
fn without_systemd_nothing_is_told() {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        systemd::ready();
        systemd::feed();
        systemd::status("dark");
        systemd::stopping();
        assert_eq!(systemd::watchdog_interval(), None);
    }
}

/// Run by the next test, in a process of its own with systemd's variables.
#[test]
#[ignore = "tells systemd; run by another test"]
fn tells_systemd() {
    systemd::ready();
    systemd::status("dark\nSTOPPING=1");
    systemd::feed();
    systemd::stopping();
    let interval = systemd::watchdog_interval().map(|interval| interval.as_millis());
    let expected = std::env::var("EXPECTED_INTERVAL_MS").unwrap();
    assert_eq!(
        interval.map(|ms| ms.to_string()).unwrap_or_default(),
        expected
    );
}

#[test]
fn systemd_is_told_what_happens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    for (watched, interval) in [("", "15000"), ("1", "")] {
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut told = Command::new(std::env::current_exe().unwrap());
        told.args(["--exact", "tells_systemd", "--ignored"])
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "30000000")
            .env("EXPECTED_INTERVAL_MS", interval)
            .env_remove("WATCHDOG_PID");
        if !watched.is_empty() {
            told.env("WATCHDOG_PID", watched);
        }
        let output = told.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        for line in [
            "READY=1\n",
            "STATUS=dark STOPPING=1\n",
            "WATCHDOG=1\n",
            "STOPPING=1\n",
        ] {
            let mut message = [0; 256];
            let length = socket.recv(&mut message).unwrap();
            assert_eq!(String::from_utf8_lossy(&message[..length]), line);
        }
        fs::remove_file(&path).unwrap();
    }
}
