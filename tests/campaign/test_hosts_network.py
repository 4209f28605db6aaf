"""The network between a campaign's hosts: packets of one direction are lost or late, the other's are not."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.integration import network
from tests.integration.network import CLEAR, LOST, Network, Way

pytestmark = pytest.mark.skipif(bool(network.missing()), reason=network.missing() or "-")
PATIENCE_S = 5.0
LOST_S = 0.5  # a packet that takes 10 ms and has not arrived by then never does


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with Network({("a", "b"): 20.0, ("a", "c"): 20.0, ("b", "c"): 20.0}) as made:
        yield made


@pytest.fixture
def sockets(net: Network) -> Iterator[dict[str, socket.socket]]:
    """A UDP socket on each host: what is lost stays lost, and every packet's time is its own."""
    opened = {}
    for name, address in net.hosts.items():
        with net.entered(name):
            opened[name] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened[name].bind((address, 0))
        opened[name].settimeout(PATIENCE_S)
    yield opened
    for one in opened.values():
        one.close()
    for source in net.hosts:
        for target in net.hosts:
            if source != target:
                net.shape(source, target, CLEAR)


def took_ms(sockets: dict[str, socket.socket], source: str, target: str) -> float:
    """How long one packet was under way."""
    sent = time.monotonic()
    sockets[source].sendto(b"x", sockets[target].getsockname())
    assert sockets[target].recv(10) == b"x"
    return (time.monotonic() - sent) * 1000


def arrives(sockets: dict[str, socket.socket], source: str, target: str) -> bool:
    sockets[target].settimeout(LOST_S)
    try:
        took_ms(sockets, source, target)
        return True
    except TimeoutError:
        return False
    finally:
        sockets[target].settimeout(PATIENCE_S)


def test_a_cut_in_one_direction_loses_the_packets_of_that_direction_alone(
    net: Network, sockets: dict[str, socket.socket]
) -> None:
    net.shape("a", "b", LOST)
    assert not arrives(sockets, "a", "b")
    assert arrives(sockets, "b", "a")
    assert arrives(sockets, "a", "c") and arrives(sockets, "c", "b"), "other pairs are not concerned"


def test_a_cut_that_heals_lets_later_packets_through_and_none_of_the_lost(
    net: Network, sockets: dict[str, socket.socket]
) -> None:
    net.shape("a", "b", LOST)
    assert not arrives(sockets, "a", "b")
    net.shape("a", "b", CLEAR)
    assert arrives(sockets, "a", "b")
    sockets["b"].settimeout(LOST_S)
    with pytest.raises(TimeoutError):
        sockets["b"].recv(10)


def test_a_delay_in_one_direction_makes_its_packets_late(net: Network, sockets: dict[str, socket.socket]) -> None:
    net.shape("a", "b", Way(delay_ms=300))
    assert took_ms(sockets, "a", "b") >= 310
    assert took_ms(sockets, "b", "a") < 300


def test_jitter_adds_between_nothing_and_its_most(net: Network, sockets: dict[str, socket.socket]) -> None:
    net.shape("a", "b", Way(delay_ms=50, jitter_ms=100))
    times = [took_ms(sockets, "a", "b") for _ in range(10)]
    assert min(times) >= 60
    assert max(times) - min(times) > 10, "they differ"


def test_a_connection_outlives_a_short_cut(net: Network) -> None:
    with net.entered("b"):
        listener = socket.create_server((net.hosts["b"], 0))
    with net.entered("a"):
        client = socket.create_connection(listener.getsockname(), PATIENCE_S)
    accepted, _ = listener.accept()
    accepted.settimeout(PATIENCE_S)
    with listener, client, accepted:
        net.shape("a", "b", LOST)
        client.sendall(b"through")
        net.shape("a", "b", CLEAR)
        assert accepted.recv(10) == b"through", "TCP sends it again"
