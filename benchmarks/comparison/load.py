"""The one request that all contenders receive, and its measurement with `wrk`."""

from __future__ import annotations

import json
import urllib.request

from comparison import wrk
from comparison.figures import Run
from comparison.wrk import WrongAnswer

MESSAGE = b'{"message":"hi"}'


def check(url: str) -> None:
    """Send one request and compare the response with the no-op agent's. Raises WrongAnswer."""
    request = urllib.request.Request(url, MESSAGE, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=wrk.TIMEOUT_S) as response:
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
    """`binary`: of wrk."""

    def __init__(self, binary: str) -> None:
        self._binary = binary

    def measure(self, contender: str, url: str, *, connections: int, round: int, warm_up_s: int, seconds: int) -> Run:
        """Check the contender, warm it up with the same load, measure it, and check it again."""
        check(url)
        if warm_up_s:
            wrk.run(self._binary, url, MESSAGE, connections=connections, seconds=warm_up_s)
        found = wrk.run(self._binary, url, MESSAGE, connections=connections, seconds=seconds)
        check(url)
        return Run(
            contender,
            connections,
            round,
            seconds=found.seconds,
            requests=found.requests,
            p50_ms=found.p50_ms,
            p99_ms=found.p99_ms,
            refused=found.refused,
            broken=found.broken,
        )
