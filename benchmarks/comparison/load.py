"""Runs `wrk` with the one request that all contenders receive, and parses its figures.

A closed loop: each connection sends its next request after the response, so a slow contender receives fewer requests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import urllib.request

from comparison.figures import Run

MESSAGE = b'{"message":"hi"}'
MARK = "figures "
TIMEOUT_S = 10  # wrk counts an answer that takes longer as broken
SCRIPT = f"""\
wrk.method = "POST"
wrk.body = '{MESSAGE.decode()}'
wrk.headers["content-type"] = "application/json"
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{MARK}{{"us":%d,"requests":%d,"p50_us":%d,"p99_us":%d,"refused":%d,"broken":%d}}\\n',
    summary.duration, summary.requests, latency:percentile(50), latency:percentile(99),
    e.status, e.connect + e.read + e.write + e.timeout))
end
"""


class NoWrk(Exception):
    """`wrk` is missing; the text says how to install it."""


class WrongAnswer(Exception):
    """A contender's response differs from that of the no-op agent."""


def find_wrk() -> str:
    """Raises NoWrk."""
    found = shutil.which("wrk")
    if found is None and shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "install", "--yes", "--quiet", "wrk"], check=False, stdout=subprocess.DEVNULL)
        found = shutil.which("wrk")
    if found is None:
        raise NoWrk("wrk, the load generator, is not installed: `sudo apt-get install wrk` (or your system's package)")
    return found


def check(url: str) -> None:
    """Send one request and compare the response with the no-op agent's. Raises WrongAnswer."""
    request = urllib.request.Request(url, MESSAGE, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            status, content = response.status, response.read()
    except OSError as error:
        raise WrongAnswer(f"{url}: {error}") from error
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if status != 200 or not isinstance(answer, dict) or answer.get("reply") != "ok" or len(answer["session_id"]) != 32:
        raise WrongAnswer(f"{url}: {status} {content[:200]!r}")


class Load:
    """`wrk`: its binary."""

    def __init__(self, wrk: str) -> None:
        self._wrk = wrk

    def measure(self, contender: str, url: str, *, connections: int, round: int, warm_up_s: int, seconds: int) -> Run:
        """Check the contender, warm it up with the same load, measure it, and check it again."""
        check(url)
        if warm_up_s:
            self._wrk_figures(url, connections, warm_up_s)
        figures = self._wrk_figures(url, connections, seconds)
        check(url)
        return Run(
            contender,
            connections,
            round,
            seconds=figures["us"] / 1e6,
            requests=figures["requests"],
            p50_ms=figures["p50_us"] / 1e3,
            p99_ms=figures["p99_us"] / 1e3,
            refused=figures["refused"],
            broken=figures["broken"],
        )

    def _wrk_figures(self, url: str, connections: int, seconds: int) -> dict[str, int]:
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write(SCRIPT)
            script.flush()
            command = [
                self._wrk, "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s",
                "--timeout", f"{TIMEOUT_S}s", "--script", script.name, url,
            ]  # fmt: skip
            said = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
        for line in said.stdout.splitlines():
            if line.startswith(MARK):
                found: dict[str, int] = json.loads(line[len(MARK) :])
                return found
        raise WrongAnswer(f"wrk said nothing of {url}: {said.stdout}{said.stderr}")
