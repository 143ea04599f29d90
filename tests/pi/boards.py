"""What hangs on the emulated Pi: which sensor and pin, how a hand in the guest sets the light, and the
configuration that goes with it. story.py plays with these."""

from pi import BROKER

DEVICE = "pi-test"
# Seconds between two readings.
INTERVAL = 1


class Bh1750:
    """The light is lux; the chip counts 1.2 a lux, high byte first."""

    driver, pin, led, on_below, off_above = "bh1750", 5, "gpiochip", 50, 80
    dark, night, dusk, bright, noon = 10, 15, 20, 400, 900

    @staticmethod
    def light(lux):
        raw = lux * 6 // 5
        return f"i2cset -y 1 0x23 0x10 {raw >> 8:#x} {raw & 255:#x} i"


class GroveHat:
    """The light is 0 to 1000, low byte first, at 0x30 for channel 0."""

    driver, pin, led, on_below, off_above = "grove-hat", 17, "gpio", 300, 350
    dark, night, dusk, bright, noon = 100, 150, 200, 600, 900

    @staticmethod
    def light(value):
        return f"i2cset -a -y 1 0x04 0x30 {value & 255:#x} {value >> 8:#x} i"


def configuration(board):
    return f"""\
[device]
id = "{DEVICE}"
[broker]
url = "mqtt://{BROKER}:1883"
[sensor]
driver = "{board.driver}"
interval = "{INTERVAL}s"
[led]
driver = "{board.led}"
pin = {board.pin}
[control]
on_below = {board.on_below}
off_above = {board.off_above}
"""


# led.driver = "gpio" on Debian's kernel, which has no window on the pins alone (/dev/gpiomem): rppal maps
# /dev/mem, which takes root. Raspberry Pi OS has that window, and needs none of this.
AS_ROOT = """\
[Service]
User=root
CapabilityBoundingSet=CAP_SYS_RAWIO
DeviceAllow=/dev/mem rw
"""
