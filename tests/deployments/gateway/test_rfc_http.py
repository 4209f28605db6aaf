"""What RFC 9110 and RFC 9112 demand of servers and intermediaries and no other test holds; docs/http.md has the whole table."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import streaming
from tests.deployments.raw import connected

METHODS = ["GET", "POST", "PUT", "OPTIONS", "DELETE"]


async def show(request: Request) -> Response:
    headers = [(name.decode(), value.decode("latin-1")) for name, value in request.scope["headers"]]
    return JSONResponse({"headers": headers, "bytes": len(await request.body())})


async def stream(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"one ", b"two ", b"three"):
            yield piece

    return StreamingResponse(pieces(), media_type=request.query_params.get("type", "text/plain"))


async def empty(request: Request) -> Response:
    return Response(status_code=204, headers={"content-length": "0"})


async def dated(request: Request) -> Response:
    return Response("x", headers={"date": "Sun, 06 Nov 1994 08:49:37 GMT"})


async def named(request: Request) -> Response:
    return Response("x", headers={"connection": "close, X-Hop", "x-hop": "mine", "x-end": "yours", "keep-alive": "timeout=5"})


async def twice(request: Request) -> Response:
    response = Response("x")
    for value in ("b", "a", "c"):
        response.headers.append("x-list", value)
        response.headers.append("set-cookie", f"{value}=1")
    return response


ROUTES = {"show": show, "stream": stream, "empty": empty, "dated": dated, "named": named, "twice": twice}


@pytest.fixture
async def app(plane: DataPlane) -> DataPlane:
    agent = Agent("app")
    agent.mount(Starlette(routes=[Route(f"/{path}", route, methods=METHODS) for path, route in ROUTES.items()]))
    await plane.add(agent)
    return plane


async def said(plane: DataPlane, request: bytes) -> bytes:
    """All that the gateway sends until it closes."""
    async with connected(plane.gateway.port) as client:
        await client.say(request)
        return await client.rest()


async def shown(
    plane: DataPlane, headers: bytes = b"", line: bytes = b"GET /agents/app/show HTTP/1.1"
) -> list[tuple[str, str]]:
    """The headers that the app receives."""
    async with connected(plane.gateway.port) as client:
        await client.say(line + b"\r\nHost: a\r\n" + headers + b"\r\n")
        response = await client.response()
    assert response.status == 200, response
    return [(name, value) for name, value in json.loads(response.body)["headers"]]


def get(path: bytes, headers: bytes = b"", version: bytes = b"1.1", method: bytes = b"GET") -> bytes:
    return method + b" /agents/app/" + path + b" HTTP/" + version + b"\r\nHost: a\r\n" + headers + b"\r\n"


class TestRequestsForwarded:
    async def test_the_gateway_names_itself_in_via_behind_those_before_it(self, app: DataPlane) -> None:
        headers = await shown(app, b"Via: 1.1 proxy\r\n")
        assert [value for name, value in headers if name == "via"] == ["1.1 proxy", "1.1 swiftclaw"]
        headers = await shown(app, line=b"GET /agents/app/show HTTP/1.0")
        assert [value for name, value in headers if name == "via"] == ["1.0 swiftclaw"]

    async def test_what_any_connection_header_names_ends_here(self, app: DataPlane) -> None:
        headers = await shown(
            app,
            b"Connection: x-a, , X-B\r\nX-A: 1\r\nConnection: X-C\r\nX-B: 2\r\nX-C: 3\r\nX-D: 4\r\nTE: gzip\r\n"
            b"HTTP2-Settings: AAMAAABk\r\n",
        )
        names = {name for name, _ in headers}
        assert "x-d" in names and not names & {"x-a", "x-b", "x-c", "connection", "te", "http2-settings"}

    async def test_lines_of_one_name_keep_their_order_and_unknown_fields_pass(self, app: DataPlane) -> None:
        headers = await shown(app, b"X-List: b\r\nX-Other: 1\r\nX-List: a\r\nX-List:  \tc \r\nContent-Location: /x\r\n")
        assert [value for name, value in headers if name == "x-list"] == ["b", "a", "c"]
        assert ("content-location", "/x") in headers

    @pytest.mark.parametrize(("given", "forwarded"), [(b"1", "0"), (b"5", "4"), (b"9" * 5000, "999"), (b"x", "x")])
    async def test_max_forwards_of_options_counts_down(self, app: DataPlane, given: bytes, forwarded: str) -> None:
        headers = await shown(app, b"Max-Forwards: " + given + b"\r\n", b"OPTIONS /agents/app/show HTTP/1.1")
        assert dict(headers)["max-forwards"] == forwarded

    async def test_at_zero_the_gateway_answers_itself_and_other_methods_do_not_count(self, app: DataPlane) -> None:
        async with connected(app.gateway.port) as client:
            await client.say(get(b"show", b"Max-Forwards: 0\r\n", method=b"OPTIONS"))
            response = await client.response()
            assert (response.status, response.body) == (200, b"") and "x-swiftclaw-instance" not in response.headers
        assert dict(await shown(app, b"Max-Forwards: 0\r\n"))["max-forwards"] == "0"


class TestResponsesForwarded:
    async def test_there_is_one_date_and_it_is_now(self, app: DataPlane) -> None:
        for path in (b"dated", b"show"):
            heard = await said(app, get(path, b"Connection: close\r\n"))
            (date,) = re.findall(rb"(?im)^date: (.*)\r$", heard)
            assert parsedate_to_datetime(date.decode()).year >= 2025 and date.endswith(b"GMT")

    async def test_errors_of_the_gateway_have_a_date_also_of_what_is_no_http(self, app: DataPlane) -> None:
        for request in (
            b"GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"x\r\n\r\n",
        ):
            heard = await said(app, request)
            assert heard.startswith(b"HTTP/1.1 4") and len(re.findall(rb"(?im)^date: ", heard)) == 1

    async def test_what_the_apps_connection_header_names_ends_here(self, app: DataPlane) -> None:
        async with app.client.get("/agents/app/named") as response:
            assert response.headers["x-end"] == "yours"
            assert not {"x-hop", "keep-alive"} & {name.lower() for name in response.headers}

    async def test_lines_of_one_name_keep_their_order(self, app: DataPlane) -> None:
        async with app.client.get("/agents/app/twice") as response:
            assert response.headers.getall("x-list") == ["b", "a", "c"]
            assert response.headers.getall("set-cookie") == ["b=1", "a=1", "c=1"]

    async def test_no_content_has_neither_length_nor_transfer_coding(self, app: DataPlane) -> None:
        heard = await said(app, get(b"empty", b"Connection: close\r\n"))
        assert heard.startswith(b"HTTP/1.1 204 ") and heard.endswith(b"\r\n\r\n")
        assert not re.search(rb"(?im)^(content-length|transfer-encoding):", heard)

    @pytest.mark.parametrize("path", [b"show", b"stream", b"nothing"])
    async def test_the_response_to_head_has_no_content(self, app: DataPlane, path: bytes) -> None:
        heard = await said(app, get(path, b"Connection: close\r\n", method=b"HEAD"))
        assert heard.startswith(b"HTTP/1.1 ") and heard.endswith(b"\r\n\r\n") and heard.count(b"\r\n\r\n") == 1

    @pytest.mark.parametrize("request_", [b"HEAD / HTTP/1.1\r\n\r\n", b"HEAD /-/healthz HTTP/1.1\r\nHost: a b\r\n\r\n"])
    async def test_nor_has_that_to_a_head_which_is_rejected(self, app: DataPlane, request_: bytes) -> None:
        heard = await said(app, request_)
        assert heard.startswith(b"HTTP/1.1 400 ") and heard.endswith(b"\r\n\r\n")

    async def test_get_and_head_are_known_to_every_resource_of_the_gateway(self, app: DataPlane) -> None:
        for path in ("/-/healthz", "/-/routes", "/v1/models", "/v1/models/app"):
            for method in ("GET", "HEAD"):
                async with app.client.request(method, path) as response:
                    assert response.status == 200
        for path in ("/v1/chat/completions", "/agents/app/messages"):
            async with app.client.get(path) as response:
                assert (response.status, response.headers["allow"]) == (405, "POST")

    @pytest.mark.parametrize("target", [b"*", b"http://a", b"http://a:80"])
    async def test_options_for_the_gateway_as_a_whole(self, app: DataPlane, target: bytes) -> None:
        heard = await said(app, b"OPTIONS " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert heard.startswith(b"HTTP/1.1 200 ") and heard.endswith(b"\r\n\r\n") and b"x-swiftclaw-instance" not in heard

    @pytest.mark.parametrize("copied", [{"transfer-encoding": "chunked", "content-length": "2"}, {"Transfer-Encoding": "gzip"}])
    async def test_an_app_that_copies_anothers_framing_is_framed_once(self, plane: DataPlane, copied: dict[str, str]) -> None:
        async def copy(scope: Any, receive: Any, send: Any) -> None:
            headers = [(name.encode(), value.encode()) for name, value in copied.items()]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"ok"})

        agent = Agent("app")
        agent.mount(copy)
        await plane.add(agent)
        async with connected(plane.gateway.port) as client:
            for _ in range(2):
                await client.say(get(b"x"))
                response = await client.response()
                assert (response.status, response.body) == (200, b"ok")


class TestHttp10:
    @pytest.mark.parametrize("path", [b"stream", b"stream?type=text/event-stream"])
    async def test_a_stream_ends_with_the_connection_and_has_no_chunks(self, app: DataPlane, path: bytes) -> None:
        heard = await said(app, get(path, b"Connection: keep-alive\r\n", b"1.0"))
        assert heard.endswith(b"\r\n\r\none two three") and not re.search(rb"(?im)^transfer-encoding:", heard)

    async def test_so_does_a_reply_of_the_handler(self, plane: DataPlane) -> None:
        await plane.add(streaming(["a", "b"]))
        body = b'{"message": "hi", "stream": true}'
        line = b"POST /agents/streamer/messages HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body)
        head, _, events = (await said(plane, line + body)).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower() and events.startswith(b"data: ") and events.endswith(b"[DONE]\n\n")

    async def test_a_response_with_a_length_is_whole_and_the_connection_is_closed(self, app: DataPlane) -> None:
        heard = await said(app, get(b"show", b"Connection: keep-alive\r\n", b"1.0"))
        head, _, body = heard.partition(b"\r\n\r\n")
        assert b"connection: close" in head and b"content-length: %d\r\n" % len(body) in head + b"\r\n"

    async def test_there_is_no_continue(self, app: DataPlane) -> None:
        request = get(b"show", b"Expect: 100-continue\r\nContent-Length: 2\r\n", b"1.0", b"POST") + b"hi"
        assert (await said(app, request)).startswith(b"HTTP/1.1 200 ")

    async def test_an_empty_response_is_empty(self, app: DataPlane) -> None:
        assert (await said(app, get(b"empty", version=b"1.0"))).endswith(b"\r\n\r\n")
        assert (await said(app, get(b"stream", version=b"1.0", method=b"HEAD"))).endswith(b"\r\n\r\n")


class TestMessages:
    async def test_a_close_is_carried_out_and_later_requests_are_not_served(self, app: DataPlane) -> None:
        heard = await said(app, get(b"show", b"Connection: close\r\n") + get(b"show"))
        assert heard.count(b"HTTP/1.1 200 OK") == 1 and b"connection: close" in heard

    async def test_responses_to_pipelined_requests_are_in_their_order(self, app: DataPlane) -> None:
        paths = [b"show", b"nothing", b"empty", b"show", b"stream"]
        heard = await said(app, b"".join(map(get, paths)) + get(b"show", b"Connection: close\r\n"))
        assert re.findall(rb"HTTP/1\.1 (\d+)", heard) == [b"200", b"404", b"204", b"200", b"200", b"200"]

    async def test_a_request_is_not_begun_before_its_head_is_complete(self, app: DataPlane) -> None:
        async with connected(app.gateway.port) as client:
            await client.say(get(b"show")[:-2])
            assert app.active() == 0
            await client.say(b"X-Last: 1\r\n\r\n")
            response = await client.response()
        assert b"x-last" in response.body

    async def test_a_long_field_is_a_client_error(self, app: DataPlane) -> None:
        heard = await said(app, get(b"show", b"X-Long: " + b"x" * 70_000 + b"\r\n"))
        assert heard.startswith(b"HTTP/1.1 431 ")

    @pytest.mark.parametrize(("path", "length", "status"), [("/agents/app/show", 5000, 413), ("/agents/nobody/x", 5, 404)])
    async def test_who_expects_100_and_is_refused_gets_the_refusal_alone(
        self, app: DataPlane, path: str, length: int, status: int
    ) -> None:
        app.http["maxBodyBytes"] = 1000
        app.announce()
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        heard = await said(app, head.encode())
        assert heard.startswith(b"HTTP/1.1 %d " % status) and b"connection: close" in heard and heard.count(b"HTTP/1.1 ") == 1

    async def test_a_status_line_has_both_spaces(self, app: DataPlane) -> None:
        async def odd(request: Request) -> Response:
            return Response("x", status_code=299)

        agent = Agent("odd")
        agent.mount(Starlette(routes=[Route("/", odd)]))
        await app.add(agent)
        heard = await said(app, b"GET /agents/odd/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert re.match(rb"HTTP/1\.1 299 [^\r]*\r\n", heard)


class TestStreamsThroughProxies:
    @pytest.mark.parametrize("path", ["/agents/streamer/messages", "/v1/chat/completions"])
    async def test_every_event_stream_forbids_buffering(self, plane: DataPlane, path: str) -> None:
        await plane.add(streaming(["a"]))
        body: dict[str, Any] = {"message": "hi", "model": "streamer", "messages": [{"role": "user", "content": "hi"}]}
        async with plane.client.post(path, json={**body, "stream": True}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert (response.headers["x-accel-buffering"], response.headers["cache-control"]) == ("no", "no-cache")

    async def test_also_those_of_mounted_apps_unless_they_say_otherwise(self, app: DataPlane) -> None:
        async with app.client.get("/agents/app/stream", params={"type": "text/event-stream"}) as response:
            assert response.headers.getall("x-accel-buffering") == ["no"]
        async with app.client.get("/agents/app/stream") as response:
            assert "x-accel-buffering" not in response.headers
