"""Holds cluster/transport/http_protocol.py and listener.py to the uvicorn they were written for.

Both override members that uvicorn does not promise to keep. When a test fails here, read uvicorn's change before the pin in
pyproject.toml is moved.
"""

from __future__ import annotations

import asyncio
import inspect

import httptools
import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from cluster.transport.http_protocol import LimitedHttpProtocol
from cluster.transport.listener import _Server

OVERRIDDEN = {
    "connection_made": ["self", "transport"],
    "connection_lost": ["self", "exc"],
    "data_received": ["self", "data"],
    "on_message_begin": ["self"],
    "on_header": ["self", "name", "value"],
    "on_headers_complete": ["self"],
    "on_body": ["self", "body"],
    "on_message_complete": ["self"],
    "on_response_complete": ["self"],
    "_start_asgi_task": ["self", "cycle", "app"],
}
CALLED = {"_should_upgrade": ["self"], "handle_websocket_upgrade": ["self"]}
SERVER = {"startup": ["self", "sockets"], "main_loop": ["self"], "on_tick": ["self", "counter"], "capture_signals": ["self"]}


def test_uvicorn_is_the_minor_version_that_this_was_written_for() -> None:
    assert uvicorn.__version__.startswith("0.54."), "read the changes of httptools_impl.py before moving the pin"


@pytest.mark.parametrize(("name", "parameters"), [*OVERRIDDEN.items(), *CALLED.items()])
def test_the_protocol_has_the_methods_with_their_parameters(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(HttpToolsProtocol, name)).parameters) == parameters


def test_nothing_else_of_the_protocol_is_overridden() -> None:
    ours = {name for name, member in vars(LimitedHttpProtocol).items() if callable(member)}
    assert {name for name in ours if name in vars(HttpToolsProtocol)} - {"__init__"} == set(OVERRIDDEN)


@pytest.mark.parametrize(("name", "parameters"), SERVER.items())
def test_the_server_has_the_methods_with_their_parameters(name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(uvicorn.Server, name)).parameters) == parameters
    assert name in vars(_Server) or name == "on_tick"


async def test_the_protocol_has_the_fields_that_are_read_and_written() -> None:
    config = uvicorn.Config(lambda *_: None, interface="asgi3", http="httptools", log_config=None)
    protocol = HttpToolsProtocol(config=config, server_state=ServerState(), app_state={})
    fields = {"loop", "parser", "pipeline", "cycle", "flow", "transport", "headers", "expect_100_continue", "server_state"}
    assert fields <= vars(protocol).keys()
    assert isinstance(protocol.parser, httptools.HttpRequestParser)
    assert {"connections", "total_requests"} <= vars(protocol.server_state).keys()
    protocol.on_message_begin()
    assert protocol.url == b"" and protocol.headers == []


async def test_a_cycle_has_the_fields_that_are_read_and_written() -> None:
    parameters = list(inspect.signature(RequestResponseCycle).parameters)
    values = dict.fromkeys(parameters) | {"scope": {"type": "http"}, "message_event": asyncio.Event()}
    cycle = RequestResponseCycle(**values)  # type: ignore[arg-type]
    fields = {"scope", "disconnected", "keep_alive", "response_started", "response_complete", "message_event"}
    assert fields <= vars(cycle).keys()
