"""Hosts with distances between them on one machine: a network namespace each, joined by TUN devices through a program
that holds every packet back for as long as its way takes. Needs root, `ip` and /dev/net/tun; nothing outside is touched.

Run as a program it is that forwarder: it reads the round trips (JSON) from its arguments, and the devices are its children.
Each line of its input changes one direction of one pair of hosts; it answers with a line, and ends with its input.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
MTU = 16_000  # few packets: each costs the forwarder the same
PACKETS = 2_000  # that a device holds while the forwarder is not looking


def missing() -> str:
    """Why this machine cannot do it; "" if it can."""
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    if shutil.which("ip") is None:
        return "needs the command ip (Debian: iproute2)"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun"
    tried = f"sc-try-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", tried], capture_output=True, check=False).returncode:
        return "may not make network namespaces here"
    subprocess.run(["ip", "netns", "delete", tried], check=True)
    return ""


@dataclass(frozen=True)
class Way:
    """What happens to the packets of one direction. `jitter_ms`: up to so much more delay, which reorders packets."""

    lost: bool = False
    delay_ms: float = 0.0
    jitter_ms: float = 0.0


CLEAR, LOST = Way(), Way(lost=True)


class Network:
    """`hosts`: name -> address. Commands run inside by `inside(host, …)`."""

    def __init__(self, round_trips_ms: Mapping[tuple[str, str], float]) -> None:
        names = list(dict.fromkeys(name for pair in round_trips_ms for name in pair))
        mark = f"{os.getpid() % 100_000}"
        self.hosts = {name: f"10.77.{os.getpid() % 250}.{number}" for number, name in enumerate(names, 1)}
        self._spaces = {name: f"sc-{mark}-{name}" for name in names}
        self._devices = {name: f"sc{mark}{number}" for number, name in enumerate(names)}
        self._trips = {f"{self.hosts[one]} {self.hosts[other]}": ms for (one, other), ms in round_trips_ms.items()}
        self._forwarder: subprocess.Popen[bytes] | None = None
        self._asking = threading.Lock()  # of the forwarder: one line, one answer

    def __enter__(self) -> Network:
        try:
            return self._make()
        except BaseException:
            self.__exit__()
            raise

    def _make(self) -> Network:
        said = json.dumps({"devices": {self._devices[name]: self.hosts[name] for name in self.hosts}, "trips": self._trips})
        self._forwarder = subprocess.Popen([sys.executable, __file__, said], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._answer() == b"ready\n", "the forwarder did not start"
        for name, address in self.hosts.items():
            device = self._devices[name]
            _ip("netns", "add", self._spaces[name])
            _ip("link", "set", device, "netns", self._spaces[name])
            self._inside_ip(name, "link", "set", "lo", "up")
            self._inside_ip(name, "address", "add", f"{address}/24", "dev", device)
            self._inside_ip(name, "link", "set", device, "mtu", str(MTU), "txqueuelen", str(PACKETS), "up")
        return self

    def __exit__(self, *_: object) -> None:
        if self._forwarder is not None:
            self._forwarder.terminate()
            self._forwarder.wait(10)
            for pipe in (self._forwarder.stdin, self._forwarder.stdout):
                assert pipe is not None
                pipe.close()
        for space in self._spaces.values():
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)

    def inside(self, host: str, *command: str) -> list[str]:
        """The command line that runs `command` on that host."""
        return ["ip", "netns", "exec", self._spaces[host], *command]

    def enter(self, host: str) -> None:
        """Move this thread, and the threads and processes that it starts from now on, to that host."""
        with Path("/run/netns", self._spaces[host]).open() as space:
            _enter(space.fileno())

    @contextlib.contextmanager
    def entered(self, host: str) -> Iterator[None]:
        """`enter`, and the way back."""
        with Path("/proc/thread-self/ns/net").open() as before:
            self.enter(host)
            try:
                yield
            finally:
                _enter(before.fileno())

    def shape(self, source: str, target: str, way: Way) -> None:
        """From now on, packets from one host to the other (not back) meet this, in addition to their distance."""
        line = {"pair": [self.hosts[source], self.hosts[target]], "way": [way.lost, way.delay_ms, way.jitter_ms]}
        with self._asking:
            assert self._forwarder is not None and self._forwarder.stdin is not None
            self._forwarder.stdin.write(json.dumps(line).encode() + b"\n")
            self._forwarder.stdin.flush()
            assert self._answer() == b"done\n", "the forwarder has ended"

    def _answer(self) -> bytes:
        assert self._forwarder is not None and self._forwarder.stdout is not None
        return self._forwarder.stdout.readline()

    def cut(self, host: str) -> None:
        """Its link is down; what it runs goes on."""
        self._inside_ip(host, "link", "set", self._devices[host], "down")

    def heal(self, host: str) -> None:
        self._inside_ip(host, "link", "set", self._devices[host], "up")

    def _inside_ip(self, host: str, *arguments: str) -> None:
        _ip("-n", self._spaces[host], *arguments)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _enter(space: int) -> None:
    """setns(2), which Python has from 3.12 on."""
    if ctypes.CDLL(None, use_errno=True).setns(space, CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


class Forwarder:
    """Every packet is written to its receiver's device after half a round trip and what its way adds, or is lost."""

    def __init__(self, devices: Mapping[str, str], trips: Mapping[str, float]) -> None:
        self._files = {_packed(address): _open(name) for name, address in devices.items()}
        self._delay_s: dict[tuple[bytes, bytes], float] = {}
        for pair, ms in trips.items():
            one, other = map(_packed, pair.split())
            self._delay_s[one, other] = self._delay_s[other, one] = ms / 2000
        self._ways: dict[tuple[bytes, bytes], Way] = {}

    def run(self) -> None:
        loop = asyncio.new_event_loop()
        for file in self._files.values():
            loop.add_reader(file, self._read, loop, file)
        loop.add_reader(sys.stdin.fileno(), self._command, loop)
        _say("ready")
        loop.run_forever()

    def _command(self, loop: asyncio.AbstractEventLoop) -> None:
        line = sys.stdin.buffer.readline()
        if not line:  # who started it has ended
            loop.stop()
            return
        command = json.loads(line)
        one, other = map(_packed, command["pair"])
        self._ways[one, other] = Way(*command["way"])
        _say("done")

    def _read(self, loop: asyncio.AbstractEventLoop, file: int) -> None:
        for packet in _packets(file):
            source, target = packet[12:16], packet[16:20]
            if packet[0] >> 4 == 4 and target in self._files and (source, target) in self._delay_s:
                way = self._ways.get((source, target), CLEAR)
                if not way.lost:
                    added_s = (way.delay_ms + random.uniform(0, way.jitter_ms)) / 1000
                    loop.call_later(self._delay_s[source, target] + added_s, _write, self._files[target], packet)


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def _packed(address: str) -> bytes:
    return bytes(map(int, address.split(".")))


def _open(device: str) -> int:
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN | IFF_NO_PI))
    return file


def _packets(file: int) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError, OSError):  # OSError: its link is down
        for _ in range(64):
            yield os.read(file, MTU + 100)


def _write(file: int, packet: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(file, packet)


if __name__ == "__main__":
    Forwarder(**json.loads(sys.argv[1])).run()
