"""uvicorn's WebSocket protocol, with a fairer view of the client.

uvicorn answers pings itself and tells the application nothing of them, so that a client that only pings would look silent: here
it is noted. And uvicorn closes with "keepalive ping timeout" although its ping still waits behind what the client is reading,
or the answer behind what the client is sending or the application has not taken: here that time does not count. uvicorn logs a
traceback for a message that is no UTF-8: here no client fills the log. And uvicorn confirms a client's close before the
application learns of it: here the application may act first (`ON_CLOSE`).
"""

from __future__ import annotations

import array
import fcntl
import termios
from typing import Any

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from cluster.transport.running_clock import running_clock

ON_CLOSE = "swiftclaw.on_close"  # in a WebSocket's scope: called before the client's close is confirmed
ACTIVE_AT = "swiftclaw.active_at"  # in a WebSocket's scope: running-clock time of the client's newest frame, or part of one
EARLY_S = 0.1  # a timer may fire a little early


class NotingWebSocketProtocol(WebSocketsSansIOProtocol):
    """One client's WebSocket. Answers to the server's own pings do not count: they say nothing of what the client wants."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._application, self.app = self.app, self._run
        self._clock = running_clock()
        self._received_at = 0.0  # when the newest bytes arrived
        self._pinged_at = 0.0  # when this side last sent a ping

    async def _run(self, scope: Any, receive: Any, send: Any) -> None:
        await self._application(scope, receive, send)
        if self.disconnected and not self.handshake_complete:
            raise ClientDisconnected  # uvicorn would log that the handshake was not completed

    def data_received(self, data: bytes) -> None:
        self._received_at = self._clock.now()
        super().data_received(data)
        if self.conn.reader.buffer:  # a part of a frame
            self._note()

    def handle_text(self, event: Any) -> None:
        self._note()
        super().handle_text(event)

    def handle_bytes(self, event: Any) -> None:
        self._note()
        super().handle_bytes(event)

    def handle_cont(self, event: Any) -> None:
        self._note()
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent and not self._is_utf8():
            self.frames = []
            self.conn.send_close(1007)
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def _is_utf8(self) -> bool:
        self.frames = [b"".join(self.frames)]
        try:
            self.frames[0].decode()
        except UnicodeDecodeError:
            return False
        return True

    def handle_ping(self) -> None:
        self._note()
        super().handle_ping()

    def handle_pong(self, event: Any) -> None:
        if bytes(event.data) != self.pending_ping_payload:  # a heartbeat of the client's own (RFC 6455, section 5.5.3)
            self._note()
        super().handle_pong(event)

    def handle_close(self, event: Any) -> None:
        scope: Any = self.scope
        if self.handshake_complete and (on_close := scope.get(ON_CLOSE)) is not None:
            on_close()
        super().handle_close(event)

    def send_keepalive_ping(self) -> None:
        self._pinged_at = self._clock.now()
        super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        if self.ping_timeout is not None and self._pong_may_be_under_way(self.ping_timeout):
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
        else:  # a client that takes nothing at all is ended by `DeadlineSweeper`
            super().keepalive_timeout()

    def _pong_may_be_under_way(self, timeout: float) -> bool:
        return (
            self.read_paused
            or self._received_at > self._clock.now() - timeout
            or self._pinged_at > self._clock.now() - timeout + EARLY_S  # this process has paused since
            or self.transport.get_write_buffer_size() > 0
            or unacknowledged_bytes(self.transport.get_extra_info("socket").fileno()) > 0
        )

    def _note(self) -> None:
        if self.handshake_complete:
            scope: Any = self.scope  # typed without additions
            scope[ACTIVE_AT] = self._clock.now()


def unacknowledged_bytes(socket: int) -> int:
    """What the system has taken to send over this socket (a file descriptor) and the other side has not acknowledged."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(socket, termios.TIOCOUTQ, count)
    except OSError:  # not every system counts it
        return 0
    return count[0]
