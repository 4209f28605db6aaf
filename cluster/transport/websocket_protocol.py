"""uvicorn's WebSocket protocol, which also notes when the client showed that it is there.

uvicorn answers pings itself and tells the application nothing of them, so that a client that only pings would look silent.
"""

from __future__ import annotations

import time
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

ACTIVE_AT = "swiftclaw.active_at"  # in a WebSocket's scope: monotonic time of the client's newest frame, or part of one


class NotingWebSocketProtocol(WebSocketsSansIOProtocol):
    """One client's WebSocket. Answers to the server's own pings do not count: they say nothing of what the client wants."""

    def data_received(self, data: bytes) -> None:
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

    def handle_ping(self) -> None:
        self._note()
        super().handle_ping()

    def handle_pong(self, event: Any) -> None:
        if bytes(event.data) != self.pending_ping_payload:  # a heartbeat of the client's own (RFC 6455, section 5.5.3)
            self._note()
        super().handle_pong(event)

    def _note(self) -> None:
        if self.handshake_complete:
            scope: Any = self.scope  # typed without additions
            scope[ACTIVE_AT] = time.monotonic()
