"""Leaving a shared port: connections that the leaving socket would have had reach the one that stays."""

from __future__ import annotations

import select
import socket
import sys
import time

import pytest

from cluster.transport.listener import bind
from cluster.transport.shared_port import drop_handshakes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a filter of Linux")


def listening(port: int = 0) -> socket.socket:
    made = bind("127.0.0.1", port, shared=True)
    made.listen(512)
    return made


def connecting(port: int, count: int) -> list[socket.socket]:
    clients = []
    for _ in range(count):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", port))
        clients.append(client)
    return clients


def accepted(server: socket.socket) -> int:
    count = 0
    while select.select([server], [], [], 0)[0]:
        server.accept()[0].close()
        count += 1
    return count


def test_no_connection_is_refused_when_one_of_two_leaves() -> None:
    leaving = listening()
    port = leaving.getsockname()[1]
    staying = listening(port)
    before = connecting(port, 40)
    time.sleep(0.1)
    assert accepted(leaving) and accepted(staying), "the kernel spreads connections over both"
    assert drop_handshakes(leaving)
    clients = connecting(port, 40)
    time.sleep(0.2)
    here = accepted(staying)
    assert accepted(leaving) == 0 and 0 < here < 40
    leaving.close()
    deadline = time.monotonic() + 10
    while here < 40 and time.monotonic() < deadline:
        here += accepted(staying)
        time.sleep(0.05)
    assert here == 40, "those that were dropped have come again"
    assert {client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for client in clients} == {0}
    for made in (*before, *clients, staying):
        made.close()


def test_a_handshake_that_has_begun_and_an_open_connection_go_on() -> None:
    server = listening()
    (client,) = connecting(server.getsockname()[1], 1)
    time.sleep(0.05)
    assert drop_handshakes(server)
    connection, _ = server.accept()
    client.setblocking(True)
    client.sendall(b"ping")
    assert connection.recv(4) == b"ping"
    for made in (client, connection, server):
        made.close()
