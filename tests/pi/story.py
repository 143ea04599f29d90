"""The story that run plays, chapter by chapter: a package installed, the server's command, the cable
pulled, the date set, the power cut, an upgrade, the cable mended, the books; then service and removal."""

import json
import os
import re
import sys
import time

from boards import AS_ROOT, DEVICE, INTERVAL, Bh1750, GroveHat, configuration
from books import Account, Broker
from pi import Failed, Pi

# Seconds that a command holds the LED: the default of control.lease.
LEASE = 15
# The default of delivery.window: what may come twice, each time a connection ends.
WINDOW = 16
# Seconds for a boot at the most; it takes 40 on an idle machine.
BOOT = 900


class Story:
    """The board, the broker, and what was seen so far."""

    def __init__(self, folder, image, deb):
        self.folder, self.image, self.deb = folder, image, deb
        self.card = os.path.join(self.folder, "card.img")
        self.lines = []
        self.pi = None
        self.broker = Broker(self.folder, DEVICE)

    def tell(self, what, seconds=None, seen=""):
        self.lines.append((what, seconds, seen))
        took = "" if seconds is None else f"{seconds:.1f} s"
        print(f"{took:>9}  {what}{': ' if seen else ''}{seen}", flush=True)

    def report(self, path, took):
        with open(path, "w") as file:
            file.write("| what | seconds | seen |\n| --- | ---: | --- |\n")
            for what, seconds, seen in self.lines:
                file.write(f"| {what} | {'' if seconds is None else f'{seconds:.1f}'} | {seen} |\n")
            file.write(f"| all of it | {took:.0f} | |\n")

    # Small steps.

    def power(self, name, plugged):
        self.pi = Pi(self.folder, self.image, self.card, self.broker.port, [self.deb], name, plugged)

    def led_is(self, board, lit, seconds, what):
        """Waits until the LED is as it should be, seen from outside; tells how long that took."""
        began = time.monotonic()
        while self.pi.led(board.pin) != lit:
            if time.monotonic() - began > seconds:
                self.evidence()
                raise Failed(f"{what}: GPIO {board.pin} is not {'high' if lit else 'low'} after {seconds} s")
            time.sleep(0.05)
        return time.monotonic() - began

    def light(self, board, value, lit, what, seconds=20):
        """The sensor is given a value, and the LED has to follow; returns the moment."""
        self.pi.do(board.light(value))
        at = time.time()
        self.tell(what, self.led_is(board, lit, seconds, what), f"light {value}, LED {'on' if lit else 'off'}")
        return at

    def set_date(self):
        self.pi.do(f"date -s @{time.time() + 0.1:.3f}")

    def date_is_wrong(self):
        guest = int(self.pi.do("date +%s"))
        if abs(guest - time.time()) < 86400:
            raise Failed("the guest knows the time, so nothing would be proved: is there a clock battery?")
        return time.strftime("%Y-%m-%d", time.gmtime(guest))

    def configure(self, board):
        self.pi.write("/etc/nightlight/nightlight.toml", configuration(board))
        if board.led == "gpio":
            self.pi.do("mkdir -p /etc/systemd/system/nightlight.service.d")
            self.pi.write("/etc/systemd/system/nightlight.service.d/as-root.conf", AS_ROOT)
            self.pi.do("systemctl daemon-reload", 120)
        self.pi.do("nightlight check")

    def evidence(self):
        """The journal, for who has to find out."""
        try:
            journal = self.pi.do("journalctl --no-pager -b -u nightlight | tail -n 40", allow_failure=True)[1]
            print(journal, file=sys.stderr)
        except Failed:
            pass

    # The chapters.

    def install(self, board):
        pi = self.pi
        self.tell("from power to a shell", pi.wait_for_shell(BOOT))
        self.tell("the date without a clock battery", None, self.date_is_wrong())
        pi.fetch(0, "/root/nightlight.deb")
        began = time.monotonic()
        pi.do("dpkg -i /root/nightlight.deb", 300)
        self.tell("dpkg -i", time.monotonic() - began, os.path.basename(self.deb))
        if pi.do("systemctl is-active nightlight", allow_failure=True)[1] == "active":
            raise Failed("the package started nightlight before it was configured")
        self.configure(board)
        pi.do(board.light(board.dark))
        if pi.led(board.pin):
            raise Failed(f"GPIO {board.pin} is high before nightlight runs")
        began = time.monotonic()
        pi.do("systemctl enable --now nightlight")
        self.led_is(board, True, 30, "the first decision")
        self.tell("from systemctl start to the first decision", time.monotonic() - began, "dark, LED on")
        _, took = self.broker.wait_for("reading", 60, lambda records: [r for r in records if r.light is not None])
        self.tell("the first reading at the broker", took)

    def online(self, board):
        self.light(board, board.bright, False, "on line, nobody commands: it gets bright")
        began = time.monotonic()
        self.broker.command('{"led_on": true, "id": "from-the-server"}')
        self.led_is(board, True, 5, "a command")
        self.tell("a command switches the LED on, in the light", time.monotonic() - began)

    def outage(self, board):
        """Returns what has to be true of the records afterwards."""
        marks = []
        self.pi.cable(False)
        took = self.led_is(board, False, LEASE + 10, "the lease of the command")
        self.tell("the cable is pulled; the lease runs out, the Pi decides", took, "bright, LED off")
        marks.append((board.dusk, self.light(board, board.dusk, True, "off line: dusk")))
        time.sleep(INTERVAL * 2)
        self.set_date()
        self.tell("the date is set")
        marks.append((board.noon, self.light(board, board.noon, False, "off line: noon")))
        marks.append((board.night, self.light(board, board.night, True, "off line: night")))
        time.sleep(INTERVAL * 10)
        self.pi.cut_power()
        return marks, time.time()

    def again(self, board):
        self.power("2", plugged=False)
        # Without power the sensor's memory is empty too, and so it is dark.
        self.led_is(board, True, BOOT, "the first decision after a power cut")
        self.tell("power again, cable still out: the first decision", self.pi.age(), "dark, LED on")
        self.tell("from power to a shell", self.pi.wait_for_shell(BOOT))
        self.tell("the date after the power cut", None, self.date_is_wrong())
        self.light(board, board.bright, False, "still off line: it gets bright")
        self.set_date()
        booted, active = (
            int(self.pi.do(f"systemctl show -P {what}")) / 1e6
            for what in ("UserspaceTimestampMonotonic", "ActiveEnterTimestampMonotonic nightlight")
        )
        self.tell("from the start of systemd to the service", active - booted, "without a network")
        self.upgrade(board)
        time.sleep(INTERVAL * 5)

    def upgrade(self, board):
        """The package once more, in the outage: configuration and backlog stay."""
        before = self.pi.do("sha256sum /etc/nightlight/nightlight.toml")
        began = time.monotonic()
        self.pi.do("dpkg -i /root/nightlight.deb", 300)
        took = time.monotonic() - began
        if self.pi.do("sha256sum /etc/nightlight/nightlight.toml") != before:
            raise Failed("the upgrade changed /etc/nightlight/nightlight.toml")
        self.tell("an upgrade, off line", took, "configuration unchanged")
        self.light(board, board.dusk, True, "after the upgrade, off line: dusk", 30)

    def mend(self):
        known = len(self.broker.records)
        began = time.monotonic()
        self.pi.cable(True)
        _, took = self.broker.wait_for(
            "live reading after the outage", 180, lambda records: [r for r in records[known:] if r.topic == "telemetry"]
        )
        self.tell("the cable is back; the first live reading", took)
        self.broker.wait_for("empty backlog", 180, lambda _: self.broker.state().get("backlog") == 0)
        self.tell("the whole history is there", time.monotonic() - began)
        # What would still come has time to.
        time.sleep(INTERVAL * 3)

    def account(self, marks, cut):
        records = list(self.broker.records)
        account = Account(records)
        if len(account.runs) != 3:
            raise Failed(f"{len(account.runs)} runs (start, power cut, upgrade are three): {account.runs}")
        if account.missing:
            raise Failed(f"records are missing: {account.missing}")
        if account.twice > 3 * WINDOW:
            raise Failed(f"{account.twice} records came twice, more than the window allows")
        if any(back is None or back > WINDOW for back in account.jumps):
            raise Failed(f"history is out of order: it went back by {account.jumps}")
        self.tell(
            "received + lost = 1..last for all three runs", None,
            f"{account.received} records, {account.replayed} of them as history, "
            f"{account.lost} told lost, {account.twice} twice",
        )
        first = account.runs[0]
        unheard = cut - max(r.ts for r in records if r.run == first)
        if unheard > 1 + INTERVAL + 2:
            raise Failed(f"the last {unheard:.1f} s before the power cut are gone, more than durable_within")
        self.tell("the last record before the power cut is older than it by", unheard)
        for light, at in marks:
            came = [r for r in records if r.run == first and r.light == light and r.replayed]
            if not came:
                raise Failed(f"no reading of light {light} came")
            off = came[0].ts - at
            if came[0].clock == "unsynced" or not -1 < off < INTERVAL + 1:
                raise Failed(f"the reading of light {light} is {off:+.1f} s off and calls itself {came[0].clock}")
            self.tell(f"true time of light {light}", None, f"{off:+.1f} s from when it was set, {came[0].clock}")
        worth = {}
        for record in records:
            if record.replayed:
                worth[record.clock] = worth.get(record.clock, 0) + 1
        self.tell("what the times of the history are worth", None, ", ".join(f"{n} {w}" for w, n in worth.items()))

    def service(self, board):
        """What doctor, systemd and the journal say."""
        pi = self.pi
        code, told = pi.do("nightlight doctor", 120, allow_failure=True)
        with open(os.path.join(self.folder, "doctor.txt"), "w") as file:
            file.write(told + "\n")
        if code != 0:
            raise Failed(f"nightlight doctor ended with {code}:\n{told}")
        counts = {word: len(re.findall(rf"^\s*{word}\b", told, re.M)) for word in ("ok", "warn", "fail")}
        self.tell("nightlight doctor", None, ", ".join(f"{n} {word}" for word, n in counts.items()))
        told = pi.do("systemd-analyze security --no-pager nightlight | tail -n 1", 120)
        exposure = float(re.search(r"(\d+\.\d+)", told).group(1))
        if exposure > 2.0:
            raise Failed(f"systemd-analyze security: exposure {exposure}, above 2.0")
        self.tell("systemd-analyze security", None, f"exposure {exposure}")
        unit = pi.do("systemctl show -P FragmentPath nightlight")
        verified = pi.do(f"systemd-analyze verify {unit}", 120)
        if verified:
            raise Failed(f"systemd-analyze verify: {verified}")
        self.tell("systemd-analyze verify", None, "nothing to say")
        journal = pi.do("journalctl --no-pager -u nightlight -o cat")
        if re.search(r"^(\d{4}-\d\d-\d\dT|<\d>|(INFO|WARN|ERROR)\b)", journal, re.M):
            raise Failed("lines in the journal carry a time or a level of their own:\n" + journal)
        levels = [
            len(pi.do(f"journalctl --no-pager -q -u nightlight -o cat -p {level}..{level}").splitlines())
            for level in ("warning", "info")
        ]
        if 0 in levels:
            raise Failed("the journal has no warning, or no information, after an outage:\n" + journal)
        self.tell("the journal", None, f"{levels[0]} warnings, {levels[1]} informations, no time twice")
        self.watchdog(board)
        began = time.monotonic()
        pi.do("systemctl stop nightlight")
        took = time.monotonic() - began
        if took > 5:
            raise Failed(f"systemctl stop took {took:.1f} s, more than 5 s")
        self.tell("systemctl stop", took, pi.do("systemctl show -P Result nightlight"))

    def drill(self, board):
        """An outage by `nightlight drill`, with a kill in it; the hand that darkens the sensor is this test's."""
        pi = self.pi
        began = time.monotonic()
        pi.do(
            "(nightlight drill --seconds 60 --kill --report /root/drill.json >/root/drill.txt 2>&1; "
            "echo $? >/root/drill.code) </dev/null >/dev/null 2>&1 &"
        )
        asked = "grep -oE 'Darken the sensor|Shine a light' /root/drill.txt"
        while not (word := pi.do(asked, allow_failure=True)[1].strip()):
            if time.monotonic() - began > 300:
                raise Failed("the drill asks for no light: " + pi.do("cat /root/drill.txt"))
            time.sleep(1)
        pi.do(board.light(board.dark if word.startswith("Darken") else board.bright))
        while pi.do("cat /root/drill.code", allow_failure=True)[0] != 0:
            if time.monotonic() - began > 900:
                raise Failed("the drill does not end: " + pi.do("tail -n 40 /root/drill.txt"))
            time.sleep(2)
        told = pi.do("cat /root/drill.txt")
        with open(os.path.join(self.folder, "drill.txt"), "w") as file:
            file.write(told + "\n")
        report = pi.do("cat /root/drill.json")
        with open(os.path.join(self.folder, "drill.json"), "w") as file:
            file.write(report + "\n")
        if pi.do("cat /root/drill.code").strip() != "0":
            raise Failed("the drill is not right:\n" + told)
        if pi.do("nft list tables").strip():
            raise Failed("the drill left its rules")
        told = json.loads(report)
        seconds, account = told["seconds"], told["account"]
        if seconds["until_the_led_changed"] is None or seconds["until_back_after_the_kill"] is None:
            raise Failed(f"the drill saw no change of the LED, or no kill: {seconds}")
        self.tell(
            "nightlight drill --kill: the account is right", time.monotonic() - began,
            f"cut for {seconds['cut']} s, decided after {seconds['until_the_pi_decided']} s, "
            f"{account['records']} records, {account['replayed']} of them as history, {account['missing']} missing",
        )

    def watchdog(self, board):
        """A daemon that hangs is replaced."""
        pi = self.pi
        self.light(board, board.dark, True, "it gets dark", 60)
        pi.do("kill -STOP $(systemctl show -P MainPID nightlight)")
        self.light(board, board.bright, False, "a hanging daemon is replaced (WatchdogSec=30s): it gets bright", 60)
        result = pi.do("journalctl --no-pager -u nightlight -o cat | grep -c 'Watchdog timeout'", allow_failure=True)[1]
        if result == "0":
            raise Failed("the daemon came back, but not by the watchdog")

    def other(self, board):
        """Another sensor, another pin."""
        self.configure(board)
        self.pi.do(board.light(board.dark))
        began = time.monotonic()
        self.pi.do("systemctl start nightlight")
        self.led_is(board, True, 30, f"{board.driver} in the dark")
        self.tell(f"{board.driver} and GPIO {board.pin}: the first decision", time.monotonic() - began, "dark, LED on")
        self.light(board, board.bright, False, f"{board.driver}: it gets bright")
        self.light(board, board.dusk, True, f"{board.driver}: dusk")

    def leave(self):
        """The package goes."""
        pi = self.pi
        pi.do("dpkg -r nightlight", 120)
        if pi.do("pidof nightlight", allow_failure=True)[0] == 0:
            raise Failed("nightlight runs after dpkg -r")
        pi.do("test -s /etc/nightlight/nightlight.toml && test -d /var/lib/nightlight/")
        self.tell("dpkg -r", None, "stopped; configuration and backlog are kept")
        # What this test itself put there.
        pi.do("rm -rf /etc/systemd/system/nightlight.service.d")
        pi.do("dpkg -P nightlight", 120)
        left = pi.do(
            "find / -xdev -path /proc -prune -o -name '*nightlight*' ! -path '/root/*' ! -path '/tmp/*' -print", 120
        )
        if left or pi.do("getent passwd nightlight", allow_failure=True)[0] == 0:
            raise Failed(f"dpkg -P left files or the user: {left}")
        self.tell("dpkg -P", None, "no file, no user is left")

    def play(self):
        board = Bh1750
        self.power("1", plugged=True)
        self.install(board)
        self.online(board)
        marks, cut = self.outage(board)
        self.tell("the power is cut, off line")
        self.again(board)
        self.mend()
        self.account(marks, cut)
        self.drill(board)
        self.service(board)
        self.other(GroveHat)
        self.leave()
