"""A gateway with a certificate: https, what follows from it, and a new certificate without a restart."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from starlette.applications import Starlette
from starlette.requests import Request as AppRequest
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from cluster.transport.tls import BadCertificate, Certificate
from swiftclaw import Agent
from tests.certificates import Files
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import post, streaming


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path / "cert.pem", tmp_path / "key.pem")
    made.make(serial=1)
    return made


@pytest.fixture
def certificate(files: Files) -> Certificate:
    return Certificate(str(files.cert), str(files.key))


@pytest.fixture
async def plane(certificate: Certificate, files: Files) -> AsyncIterator[DataPlane]:
    plane = DataPlane(tls=certificate.context)
    await plane.start()
    await plane.client.close()
    plane.client = aiohttp.ClientSession(
        f"https://localhost:{plane.gateway.port}", connector=aiohttp.TCPConnector(ssl=files.trusted(), limit=0)
    )
    yield plane
    await plane.stop()


async def served(plane: DataPlane, **options: ssl.TLSVersion) -> tuple[int, str]:
    """The serial number that a new connection is shown, and the version of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for name, version in options.items():
        setattr(context, name, version)
    _, writer = await asyncio.open_connection("127.0.0.1", plane.gateway.port, ssl=context)
    connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
    shown = connection.getpeercert(binary_form=True)
    writer.transport.abort()
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number, connection.version() or ""


def told() -> Agent:
    """Answers with the headers that it was sent."""
    agent = Agent("told")

    async def headers(request: AppRequest) -> JSONResponse:
        return JSONResponse({"headers": dict(request.headers), "scheme": request.url.scheme})

    async def socket(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(json.dumps(dict(socket.headers)))
        await socket.close()

    agent.mount(Starlette(routes=[Route("/headers", headers), WebSocketRoute("/socket", socket)]))

    @agent.on_message
    async def handle(message: str) -> str:
        return message

    return agent


async def test_the_gateway_speaks_https_and_the_agent_is_told(plane: DataPlane) -> None:
    await plane.add(told())
    async with plane.client.get("/agents/told/headers") as response:
        assert (await response.json())["headers"]["x-forwarded-proto"] == "https"
    async with plane.client.ws_connect("/agents/told/socket") as socket:
        assert json.loads(await socket.receive_str())["x-forwarded-proto"] == "https"


async def test_its_session_cookie_is_secure(plane: DataPlane) -> None:
    plane.blocks["told"] = {"loadBalancing": {"sessionAffinity": {"enabled": True}}}
    await plane.add(told())
    status, _, headers = await post(plane, "told", {"message": "hi"})
    assert status == 200
    assert "; Secure" in headers["set-cookie"] and "; HttpOnly" in headers["set-cookie"]


async def test_plain_http_on_its_port_is_not_answered(plane: DataPlane) -> None:
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientError):
            await client.get(f"http://127.0.0.1:{plane.gateway.port}/-/routes")


async def test_tls_is_12_or_13_and_nothing_older(plane: DataPlane, certificate: Certificate) -> None:
    assert (await served(plane))[1] == "TLSv1.3"
    assert (await served(plane, maximum_version=ssl.TLSVersion.TLSv1_2))[1] == "TLSv1.2"
    assert certificate.context.minimum_version is ssl.TLSVersion.TLSv1_2


class TestReload:
    async def test_new_files_are_shown_to_new_connections_and_open_streams_go_on(
        self, plane: DataPlane, files: Files, certificate: Certificate
    ) -> None:
        await plane.add(streaming(["one"], forever=True))
        following = asyncio.create_task(certificate.follow(every_s=0.02))
        try:
            async with plane.client.post("/agents/streamer/messages", json={"message": "go", "stream": True}) as stream:
                assert b"one" in await stream.content.readuntil(b"\n\n")
                files.make(serial=2)
                while (await served(plane))[0] != 2:
                    await asyncio.sleep(0.02)
                for _ in range(3):
                    assert b"tick" in await stream.content.readuntil(b"\n\n")
            assert (await served(plane, maximum_version=ssl.TLSVersion.TLSv1_2))[0] == 2
        finally:
            following.cancel()

    @pytest.mark.parametrize("broken", ["cert", "key", "absent", "mismatch"])
    async def test_broken_files_change_nothing_and_are_told_once(
        self, plane: DataPlane, files: Files, certificate: Certificate, broken: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        if broken == "mismatch":
            other = Files(files.cert, files.key.with_name("other.pem"))
            other.make(serial=3)
        elif broken == "absent":
            files.key.unlink()
        else:
            getattr(files, broken).write_text("-----BEGIN NONSENSE-----\n")
        with caplog.at_level(logging.ERROR, "swiftclaw.tls"):
            assert (certificate.refresh(), certificate.refresh()) == (False, False)
        assert (await served(plane))[0] == 1
        (line,) = caplog.messages
        assert line.endswith("; the previous certificate stays in use") and "\n" not in line
        files.make(serial=4)
        assert certificate.refresh()
        assert (await served(plane))[0] == 4

    async def test_a_link_that_is_turned_to_other_files_counts_as_new(self, tmp_path: Path) -> None:
        """So do Kubernetes' secrets arrive."""
        for version in (5, 6):
            folder = tmp_path / str(version)
            folder.mkdir()
            Files(folder / "tls.crt", folder / "tls.key").make(version)
        link = tmp_path / "now"
        link.symlink_to(tmp_path / "5")
        certificate = Certificate(str(link / "tls.crt"), str(link / "tls.key"))
        assert not certificate.refresh()
        link.unlink()
        link.symlink_to(tmp_path / "6")
        assert certificate.refresh()


class TestBadFiles:
    """One sentence that names the file; no key's content."""

    def refusal(self, files: Files) -> str:
        with pytest.raises(BadCertificate) as refused:
            Certificate(str(files.cert), str(files.key))
        return str(refused.value)

    def test_an_absent_one(self, files: Files) -> None:
        files.cert.unlink()
        assert self.refusal(files) == f"tls: the certificate {files.cert} cannot be read (no such file or directory)"

    def test_one_that_is_a_folder(self, files: Files) -> None:
        files.key.unlink()
        files.key.mkdir()
        assert self.refusal(files) == f"tls: the key {files.key} cannot be read (is a directory)"

    @pytest.mark.parametrize("which", ["cert", "key"])
    def test_one_that_is_no_pem(self, files: Files, which: str) -> None:
        file: Path = getattr(files, which)
        file.write_text("not a certificate")
        assert self.refusal(files) == f"tls: {file} is not in PEM format or is damaged"

    def test_two_that_do_not_belong_together(self, files: Files, tmp_path: Path) -> None:
        Files(tmp_path / "other.pem", files.key).make(serial=2)
        assert self.refusal(files) == f"tls: the key in {files.key} does not belong to the certificate in {files.cert}"

    def test_a_key_behind_a_password(self, files: Files) -> None:
        files.make(serial=2, password=b"secret")
        assert self.refusal(files) == f"tls.key: {files.key} is protected by a password; use a key without one"
