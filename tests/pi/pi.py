"""The emulated Raspberry Pi 3B: QEMU, its serial line as a shell, its monitor as eyes and hands from
outside (LED, cable, power). It knows nothing of nightlight; run plays the story with it."""

import atexit
import codecs
import json
import os
import re
import shlex
import socket
import subprocess
import threading
import time

# GPLEV0 of the BCM2837: the levels of GPIO 0 to 31.
LEVELS = 0x3F200034
# What the guest can reach on the network, and nothing else (restrict=on).
BROKER = "10.0.2.100"
FILES = "10.0.2.101"

KERNEL_ARGUMENTS = (
    # iomem=relaxed: Debian's kernel has no /dev/gpiomem, and rppal then maps /dev/mem.
    "console=ttyAMA0,115200 root=/dev/mmcblk0 rw rootwait iomem=relaxed quiet "
    "modprobe.blacklist=vchiq,bcm2835_v4l2,vc4,snd_bcm2835,hci_uart"
)


class Failed(Exception):
    """What failed, on what, and where to look."""


class Pi:
    """One power-on of the board. Several in turn may use the same card."""

    def __init__(self, folder, image, card, broker_port, files, name, plugged=True):
        """`files`: files that the guest can fetch, numbered from 0. `plugged`: whether the network
        cable is in when the power comes."""
        self.folder, self.name = folder, name
        self.log = os.path.join(folder, f"serial-{name}.log")
        self.text = ""
        self.news = threading.Condition()
        self.commands = 0
        sockets = {what: os.path.join(folder, f"{what}.sock") for what in ("serial", "qmp")}
        for path in sockets.values():
            if os.path.exists(path):
                os.unlink(path)
        forward = [f"guestfwd=tcp:{BROKER}:1883-cmd:socat STDIO TCP:127.0.0.1:{broker_port}"]
        for number, path in enumerate(files):
            forward.append(f"guestfwd=tcp:{FILES}:{8000 + number}-cmd:cat {path}")
        light = [
            # A BH1750, a Grove Base HAT, each played by an EEPROM: a write sets the place, a read reads there.
            ["-device", f"at24c-eeprom,bus=i2c-bus.1,address={address},rom-size=256"]
            for address in ("0x23", "0x04")
        ]
        self.began = time.monotonic()
        self.errors = open(os.path.join(folder, f"qemu-{name}.log"), "wb")
        self.process = subprocess.Popen(
            # -S: it waits until the cable is as it should be.
            ["qemu-system-aarch64", "-M", "raspi3b", "-display", "none", "-S"]
            + ["-kernel", f"{image}/kernel", "-initrd", f"{image}/initrd", "-dtb", f"{image}/pi.dtb"]
            + ["-append", KERNEL_ARGUMENTS]
            + ["-drive", f"file={card},if=sd,format=raw"]
            + ["-serial", f"unix:{sockets['serial']},server=on,wait=off"]
            + ["-qmp", f"unix:{sockets['qmp']},server=on,wait=off"]
            + ["-usb", "-device", "usb-net,netdev=n0"]
            + ["-netdev", ",".join(["user,id=n0,restrict=on", *forward])]
            + [word for pair in light for word in pair],
            stdin=subprocess.DEVNULL, stdout=self.errors, stderr=self.errors,
        )
        # However this program ends, QEMU ends too.
        atexit.register(self.process.kill)
        self.serial = self._connect(sockets["serial"])
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.qmp = self._connect(sockets["qmp"])
        self.qmp_lines = self.qmp.makefile("r")
        self.qmp_lines.readline()
        self._monitor("qmp_capabilities")
        self.cable(plugged)
        self._monitor("cont")

    # The serial line.

    def wait_for_shell(self, seconds):
        """Until root's shell is there; then makes it one that a program can talk to."""
        self._wait_for(r"root@pi:~# ", seconds, "did not reach a shell")
        self._send("exec env PS1= PS2= sh\n")
        self._send("stty -echo; dmesg -n 1\n")
        time.sleep(1)
        self.do("true")
        return self.age()

    def do(self, command, seconds=60, allow_failure=False):
        """Runs a shell command as root in the guest; returns what it prints, on both streams."""
        self.commands += 1
        start = len(self.text)
        # The mark is not in what is sent, so that an echo of it would not do.
        self._send(f"{{ {command}\n}} 2>&1 </dev/null; printf '\\n@%s:%s@\\n' {self.commands} $?\n")
        found = self._wait_for(
            rf"\n@{self.commands}:(\d+)@", seconds, f"did not finish `{command}`", start
        )
        output = self.text[start : found.start()].strip("\n")
        code = int(found.group(1))
        if code != 0 and not allow_failure:
            raise Failed(f"`{command}` ended with {code} in the guest:\n{output}")
        return (code, output) if allow_failure else output

    def write(self, path, text):
        """Writes a small file in the guest."""
        for number, line in enumerate(text.splitlines()):
            self.do(f"echo {shlex.quote(line)} {'>>' if number else '>'}{path}")

    def fetch(self, number, path):
        """Fetches the host's file of that number to `path` in the guest, as scp would."""
        self.do(f"bash -c 'cat <>/dev/tcp/{FILES}/{8000 + number} >{path}'", 120)

    def _send(self, text):
        self.serial.sendall(text.encode())

    def _read(self):
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        with open(self.log, "wb") as log:
            while True:
                try:
                    data = self.serial.recv(65536)
                except OSError:
                    data = b""
                with self.news:
                    if data:
                        log.write(data)
                        log.flush()
                        self.text += decode(data).replace("\r", "")
                    self.news.notify_all()
                if not data:
                    return

    def _wait_for(self, pattern, seconds, what, start=0):
        until = time.monotonic() + seconds
        with self.news:
            while True:
                found = re.compile(pattern).search(self.text, start)
                if found:
                    return found
                left = until - time.monotonic()
                if left <= 0 or not self.reader.is_alive():
                    why = f"in {seconds} s" if left <= 0 else "before QEMU ended"
                    raise Failed(f"the guest {what} {why}: see {self.log} and {self.errors.name}")
                self.news.wait(min(left, 1))

    # From outside: the monitor.

    def led(self, pin):
        """Whether the pin is high, as the board's own register has it."""
        answer = self._monitor("human-monitor-command", {"command-line": f"xp /1xw {LEVELS:#x}"})
        return bool(int(answer.split(":")[1], 16) >> pin & 1)

    def cable(self, plugged):
        """Pulls the network cable, or mends it."""
        self._monitor("set_link", {"name": "n0", "up": plugged})

    def cut_power(self):
        """QEMU is killed: nothing in the guest gets to know."""
        self.process.kill()
        self.process.wait()
        self.errors.close()

    def age(self):
        """Seconds since the power came."""
        return time.monotonic() - self.began

    def _monitor(self, command, arguments=None):
        self.qmp.sendall(json.dumps({"execute": command, "arguments": arguments or {}}).encode())
        for line in self.qmp_lines:
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise Failed(f"QEMU refused {command} {arguments}: {answer['error']['desc']}")
        raise Failed(f"QEMU ended during {command}: see {self.errors.name}")

    def _connect(self, path):
        until = time.monotonic() + 20
        while True:
            try:
                there = socket.socket(socket.AF_UNIX)
                there.connect(path)
                return there
            except OSError:
                there.close()
                if self.process.poll() is not None or time.monotonic() > until:
                    self.errors.flush()
                    with open(self.errors.name, errors="replace") as errors:
                        raise Failed(f"QEMU did not start: {errors.read().strip()}") from None
                time.sleep(0.1)
