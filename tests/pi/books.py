"""The far end: a mosquitto of our own on loopback, and a count of everything that comes, made from the
messages alone by the rules of docs/protocol.md. It shares no code with nightlight."""

import atexit
import datetime
import json
import os
import socket
import subprocess
import threading
import time
from collections import defaultdict

from pi import Failed


class Record:
    """One record as it came: `topic`, host time of its arrival, and its fields."""

    def __init__(self, topic, arrived, fields):
        self.topic, self.arrived, self.fields = topic, arrived, fields
        # A loss is told in the place of what is lost, and has no number of its own.
        self.run, self.seq = fields.get("run"), fields.get("seq")
        self.event, self.light = fields.get("event"), fields.get("light")
        self.clock = fields.get("clock")
        ts = fields.get("ts")
        self.ts = ts and datetime.datetime.fromisoformat(ts.replace("Z", "+00:00")).timestamp()

    @property
    def replayed(self):
        return self.fields.get("replayed", False)


class Broker:
    """mosquitto, and mosquitto_sub that hands over each message with the time of its arrival."""

    def __init__(self, folder, device):
        self.device = device
        self.records, self.states, self.results = [], [], []
        self.news = threading.Condition()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = os.path.join(folder, "mosquitto.conf")
        with open(config, "w") as file:
            # No limit on what waits for the counter: the limit of 1000 drops silently.
            file.write(f"listener {self.port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n")
        log = open(os.path.join(folder, "mosquitto.log"), "wb")
        broker = subprocess.Popen(
            ["mosquitto", "-v", "-c", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        # However this program ends, these end too.
        atexit.register(broker.kill)
        self._wait_for_port()
        counter = subprocess.Popen(
            ["mosquitto_sub", "-p", str(self.port), "-q", "1", "-t", f"{device}/#", "-F", "%U\t%r\t%t\t%p"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
        )
        atexit.register(counter.kill)
        self.raw = open(os.path.join(folder, "messages.tsv"), "w")
        threading.Thread(target=self._count, args=(counter.stdout,), daemon=True).start()

    def command(self, payload):
        """The server's word."""
        subprocess.run(
            ["mosquitto_pub", "-p", str(self.port), "-q", "1", "-t", f"{self.device}/commands", "-m", payload],
            check=True, timeout=10,
        )

    def wait_for(self, what, seconds, test):
        """Until test(records) gives something; returns that and the seconds it took."""
        began = time.monotonic()
        with self.news:
            while True:
                found = test(self.records)
                took = time.monotonic() - began
                if found:
                    return found, took
                if took > seconds:
                    raise Failed(f"no {what} came to the broker in {seconds} s: see messages.tsv")
                self.news.wait(min(1, seconds - took + 0.01))

    def state(self):
        """The newest state of the device."""
        with self.news:
            return self.states[-1] if self.states else {}

    def _wait_for_port(self):
        until = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if time.monotonic() > until:
                    raise Failed("mosquitto does not answer: see mosquitto.log") from None
                time.sleep(0.1)

    def _count(self, lines):
        for line in lines:
            self.raw.write(line)
            self.raw.flush()
            arrived, retained, topic, payload = line.rstrip("\n").split("\t", 3)
            topic = topic.removeprefix(f"{self.device}/")
            with self.news:
                if topic in ("telemetry", "telemetry/history", "events"):
                    fields = json.loads(payload)
                    for one in fields if isinstance(fields, list) else [fields]:
                        self.records.append(Record(topic, float(arrived), one))
                elif topic == "state" and payload and retained == "0":
                    self.states.append(json.loads(payload))
                elif topic == "commands/result":
                    self.results.append(json.loads(payload))
                self.news.notify_all()


class Account:
    """Which records came, which were told lost, and which are missing."""

    def __init__(self, all_told):
        records = [record for record in all_told if record.event != "loss"]
        self.runs = list(dict.fromkeys(record.run for record in records))
        seen, lost, self.last = defaultdict(set), defaultdict(set), defaultdict(int)
        self.replayed = 0
        for record in records:
            seen[record.run].add(record.seq)
            self.last[record.run] = max(self.last[record.run], record.seq)
            if record.event == "started" and "previous_run" in record.fields:
                run, seq = record.fields["previous_run"], record.fields["previous_seq"]
                self.last[run] = max(self.last[run], seq)
        for told in (record.fields for record in all_told if record.event == "loss"):
            lost[told["of_run"]].update(range(told["from_seq"], told["to_seq"] + 1))
        self.received = sum(len(seqs) for seqs in seen.values())
        self.lost = sum(len(lost[run] - seen[run]) for run in lost)
        self.twice = len(records) - self.received
        self.missing = {
            run: sorted(set(range(1, self.last[run] + 1)) - seen[run] - lost[run]) for run in self.last
        }
        self.missing = {run: seqs for run, seqs in self.missing.items() if seqs}
        self.replayed = sum(record.replayed for record in records)
        self.jumps = jumps(record for record in records if record.topic == "telemetry/history")


def jumps(history):
    """How far history went back, each time it did: 0 places is a repetition of the last record."""
    back, order, last = [], {}, {}
    for record in history:
        order.setdefault(record.run, len(order))
        place = (order[record.run], record.seq)
        if last and place <= last["place"]:
            same = last["place"][0] == place[0]
            back.append(last["place"][1] - place[1] if same else None)
        last["place"] = max(place, last.get("place", place))
    return back
