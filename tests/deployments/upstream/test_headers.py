"""Which headers of a client reach the app, and how the app sees the request: by strangers, and by trusted proxies."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI, Request, WebSocket

from swiftclaw import Agent
from tests.deployments.conftest import DataPlane

CLAIMS = (
    "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Prefix", "X-Forwarded-Port", "X-Forwarded-Server",
    "X-Forwarded-Ssl", "X-Forwarded-User", "X-Forwarded-Client-Cert", "Forwarded", "X-Real-IP", "X-Client-IP",
    "True-Client-IP", "CF-Connecting-IP", "X-Original-Forwarded-For", "X-Original-URL", "X-Rewrite-URL", "Front-End-Https",
    "X-Envoy-External-Address",
)  # fmt: skip
FORGED = "//evil.example"


def scope_of(scope: Any) -> dict[str, Any]:
    names = ("client", "server", "scheme", "root_path", "path")
    headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
    return {**{name: scope[name] for name in names}, "headers": headers}


@pytest.fixture
async def shop(plane: DataPlane) -> DataPlane:
    agent, app = Agent("shop"), FastAPI()

    @app.get("/scope")
    async def show(request: Request) -> dict[str, Any]:
        return {**scope_of(request.scope), "url": str(request.url_for("show"))}

    @app.websocket("/socket")
    async def socket(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_json({**scope_of(socket.scope), "url": str(socket.url)})
        await socket.close()

    @app.get("/things/")
    async def things() -> list[str]:
        return []

    agent.mount(app)
    await plane.add(agent)
    return plane


async def seen(plane: DataPlane, headers: list[tuple[str, str]], path: str = "/agents/shop/scope") -> dict[str, Any]:
    async with plane.client.get(path, headers=headers) as response:
        return await response.json()  # type: ignore[no-any-return]


async def seen_by_websocket(plane: DataPlane, headers: list[tuple[str, str]]) -> dict[str, Any]:
    async with plane.client.ws_connect("/agents/shop/socket", headers=headers) as socket:
        return await socket.receive_json()  # type: ignore[no-any-return]


def trust_all(plane: DataPlane) -> None:
    plane.args["trustedProxies"] = ["127.0.0.0/8"]
    plane.announce()


@pytest.mark.parametrize("look", [seen, seen_by_websocket])
async def test_a_strangers_claims_do_not_reach_the_app(shop: DataPlane, look: Any) -> None:
    forged = [(written, FORGED) for name in CLAIMS for written in (name, name.lower(), name.replace("-", "_"))]
    scope = await look(shop, [*forged, ("session_id", "kept"), ("x-user-id", "kept")])
    assert FORGED not in {value for _, value in scope["headers"]}
    assert {name for name, value in scope["headers"] if value == "kept"} == {"session_id", "x-user-id"}
    names = [name for name, _ in scope["headers"]]
    assert sorted(name for name in names if name.startswith("x-forwarded-")) == [
        "x-forwarded-for", "x-forwarded-host", "x-forwarded-prefix", "x-forwarded-proto",
    ]  # fmt: skip
    assert (scope["client"][0], scope["server"]) == ("127.0.0.1", ["127.0.0.1", shop.gateway.port])
    assert scope["client"][1] > 0
    assert (scope["root_path"], scope["path"].rsplit("/", 1)[0]) == ("/agents/shop", "/agents/shop")


BEHIND_TLS = [
    ("X-Forwarded-For", "203.0.113.9:4711"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "shop.example"),
    ("X-Forwarded-Prefix", "/api"),
    ("X-Forwarded-Port", "443"),
    ("Forwarded", "for=203.0.113.9"),
]


async def test_a_trusted_proxys_claims_are_the_apps_view_of_the_request(shop: DataPlane) -> None:
    trust_all(shop)
    scope = await seen(shop, BEHIND_TLS)
    assert (scope["client"], scope["scheme"], scope["root_path"]) == (["203.0.113.9", 4711], "https", "/api/agents/shop")
    assert scope["url"] == "https://shop.example/api/agents/shop/scope"
    headers = dict(scope["headers"])
    assert headers["x-forwarded-for"] == "203.0.113.9:4711, 127.0.0.1"
    assert (headers["x-forwarded-prefix"], headers["x-forwarded-port"], headers["forwarded"]) == (
        "/api/agents/shop", "443", "for=203.0.113.9",
    )  # fmt: skip
    assert (await seen_by_websocket(shop, BEHIND_TLS))["url"] == "wss://shop.example/api/agents/shop/socket"


@pytest.mark.parametrize(
    ("claims", "base"), [([], "http://own.example"), (BEHIND_TLS, "https://shop.example/api")], ids=["direct", "behind TLS"]
)
async def test_redirects_lead_back_through_the_gateway(shop: DataPlane, claims: list[tuple[str, str]], base: str) -> None:
    trust_all(shop)
    headers = [("Host", "own.example"), *claims]
    async with shop.client.get("/agents/shop/things", headers=headers, allow_redirects=False) as response:
        assert (response.status, response.headers["location"]) == (307, f"{base}/agents/shop/things/")


async def test_the_documentation_page_finds_its_schema(shop: DataPlane) -> None:
    async with shop.client.get("/agents/shop/docs") as response:
        assert "'/agents/shop/openapi.json'" in await response.text()
    async with shop.client.get("/agents/shop/openapi.json") as response:
        assert (await response.json())["servers"] == [{"url": "/agents/shop"}]


@pytest.mark.parametrize("proto", ["gopher", "", "https;", "http, https, ftp"])
async def test_a_scheme_that_is_none_has_no_effect(shop: DataPlane, proto: str) -> None:
    trust_all(shop)
    assert (await seen(shop, [("X-Forwarded-Proto", proto)]))["scheme"] == "http"
