"""A cluster with a certificate: it answers over https only, and what is secret is told nowhere."""

from __future__ import annotations

import json
import re
import ssl
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cluster.transport.tls import CHECK_EVERY_S
from tests.certificates import Files
from tests.integration.conftest import Cluster, get, until

pytestmark = pytest.mark.cluster

MODEL_KEY = "sk-live-51f0c9a7d2"
BODY_SECRET = "4111-1111-1111-1111"  # what a user writes is nobody else's business either
AGENT = """
from swiftclaw import Agent
agent = Agent("broken", model="openai:small")

@agent.on_message
async def handle(message):
    if message == "ask":
        return await agent.generate(message)
    raise ValueError("no")
"""
SECRET_FILES = ("key", "session-keys")


@dataclass
class Secure:
    """The running cluster, and how to ask it."""

    cluster: Cluster
    files: Files

    def ask(self, path: str, body: object = None) -> tuple[int, str, str]:
        """(status, body, the Set-Cookie header) over https, with the certificate believed."""
        url = f"https://localhost:{self.cluster.port}{path}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10, context=self.files.trusted()) as response:
                return response.status, response.read().decode(), response.headers.get("set-cookie", "")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), ""

    def secrets(self) -> list[str]:
        folder = self.cluster.folder / ".swiftclaw"
        kept = [word for name in SECRET_FILES for word in (folder / name).read_text().split()]
        private = [line for line in self.files.key.read_text().splitlines() if not line.startswith("-----")]
        return [*kept, MODEL_KEY, private[0]]

    def processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter(["environ"]):
            if (process.info["environ"] or {}).get("RAY_TMPDIR") == str(self.cluster.folder):
                yield process


@pytest.fixture(scope="module")
def secure(stopped: Cluster) -> Iterator[Secure]:
    files = Files(stopped.folder / "cert.pem", stopped.folder / "key.pem")
    files.make(serial=1)
    (stopped.folder / "broken.py").write_text(AGENT)
    blocks = {"agent": "broken:agent", "regions": {"us-east-1": {"instances": 1}}}
    edge = {"region": "us-east-1", "host": "127.0.0.1", "port": stopped.port, "replicas": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", MODEL_KEY)
        patch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        affine = {**blocks, "loadBalancing": {"sessionAffinity": {"enabled": True}}}
        stopped.write({"broken": affine}, gateways=[{**edge, "tls": {"cert": "cert.pem", "key": "key.pem"}}])
        shown = stopped.up().stdout
        assert f"https://127.0.0.1:{stopped.port}" in shown and "curl -sk https://" in shown
        yield Secure(stopped, files)


def test_it_answers_over_https_with_a_secure_cookie(secure: Secure) -> None:
    assert secure.ask("/-/healthz")[:2] == (200, "success")
    status, body, _ = secure.ask("/agents/broken/messages", {"message": BODY_SECRET})
    assert (status, json.loads(body)["error"]["type"]) == (500, "agent_error")
    assert secure.ask("/agents/broken/messages", {"message": "ask"})[0] == 502
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(f"http://127.0.0.1:{secure.cluster.port}/-/healthz", timeout=10)
    assert "https://127.0.0.1" in secure.cluster.run("status").stdout


def test_no_answer_of_the_admin_port_and_no_command_tells_a_secret(secure: Secure) -> None:
    source = (Path(__file__).parents[2] / "cluster/admin/app.py").read_text()
    paths = [path.replace("{agent}", "broken") for path in re.findall(r'Route\("(/[^"]*)"', source)]
    assert "/metrics" in paths and "/api/status" in paths
    told = [json.dumps(get(secure.cluster.admin + path)) for path in paths if path != "/api/agents/broken/live"]
    told += [secure.ask(path)[1] for path in ("/-/routes", "/v1/models", "/-/watch", "/agents/nobody/x", "/agents/broken/x")]
    told += [secure.cluster.run(*command).stdout for command in (["status"], ["instances", "broken", "--health"])]
    for secret in secure.secrets():
        assert not any(secret in text for text in told)


def test_no_command_line_tells_a_secret(secure: Secure) -> None:
    lines = [" ".join(process.cmdline()) for process in secure.processes()]
    assert len(lines) > 3, "Ray's processes"
    for secret in secure.secrets():
        assert [line for line in lines if secret in line] == []


def test_no_log_tells_a_secret_or_what_a_user_wrote(secure: Secure) -> None:
    secure.ask("/agents/broken/messages", {"message": BODY_SECRET})

    def logs() -> list[Path]:
        found = secure.cluster.folder.glob("swiftclaw-*/session_*/logs/**/*")
        return [file for file in found if file.is_file() and not file.is_symlink()]

    line = b"the agent's code raised an exception"
    until(lambda: any(line in file.read_bytes() for file in logs()), "the request's line in a log", 20)
    for secret in [*secure.secrets(), BODY_SECRET]:
        assert [file.name for file in logs() if secret.encode() in file.read_bytes()] == []


def test_what_is_kept_on_disk_is_the_owners_only(secure: Secure) -> None:
    folder = secure.cluster.folder / ".swiftclaw"
    for name in (*SECRET_FILES, "state.json"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    state = (folder / "state.json").read_text()
    assert not any(secret in state for secret in secure.secrets())


def test_an_instance_listens_on_its_nodes_address_and_takes_no_wrong_key(secure: Secure) -> None:
    state = json.loads((secure.cluster.folder / ".swiftclaw" / "state.json").read_text())
    (known,) = [instance["registration"] for instance in state["instances"]]
    own = {c.laddr for c in psutil.Process(known["pid"]).net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert [host for host, port in own if port == known["port"]] == [known["host"]] == ["127.0.0.1"]
    for path in ("/messages", "/chat", "/app/x", "/-/watch", "/-/check", "/-/ping", "/-/kill", "/-/drain"):
        for key in ({}, {"x-swiftclaw-key": ""}, {"x-swiftclaw-key": "0" * 64}):
            request = urllib.request.Request(f"http://{known['host']}:{known['port']}{path}", b"{}", headers=key)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10)
            assert refused.value.code == 403
    assert secure.cluster.healthy("broken") == {"instance-1": known["pid"]}


def test_a_new_certificate_is_shown_without_a_restart(secure: Secure) -> None:
    before = [gateway["pid"] for gateway in secure.cluster.gateways()]
    old = ssl.get_server_certificate(("127.0.0.1", secure.cluster.port))
    secure.files.make(serial=2)
    new = secure.files.cert.read_text()
    until(
        lambda: ssl.get_server_certificate(("127.0.0.1", secure.cluster.port)) == new,
        f"the new certificate, looked for every {CHECK_EVERY_S:g} s",
        30,
    )
    assert old != new and [gateway["pid"] for gateway in secure.cluster.gateways()] == before


def test_a_certificate_that_cannot_be_read_is_a_sentence(secure: Secure) -> None:
    """`check` warns, and `up` says it and undoes the change."""
    text = secure.cluster.file.read_text()
    secure.cluster.file.write_text(text.replace("cert.pem", "absent.pem"))
    try:
        absent = secure.cluster.folder / "absent.pem"
        said = secure.cluster.run("check")
        assert said.returncode == 0 and f"gateways[0].tls.cert: there is no file {absent} on this machine" in said.stderr
        done = secure.cluster.run("up")
        assert done.returncode == 1
        assert f"tls: the certificate {absent} cannot be read (no such file or directory)" in done.stderr
        assert "Traceback" not in done.stdout + done.stderr
    finally:
        secure.cluster.file.write_text(text)
    until(lambda: secure.ask("/-/healthz")[:2] == (200, "success"), "a gateway with the certificate of before", 60)
