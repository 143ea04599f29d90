# What takes more than cargo. `make pi-test`: an emulated Raspberry Pi, see docs/pi-test.md.
.PHONY: pi-test
pi-test:
	tests/pi/run
