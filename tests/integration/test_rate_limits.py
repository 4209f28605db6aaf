"""Limits on a real cluster with two gateways, which must tell each other whom they have let through."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from typing import Any

import pytest

from tests.integration.conftest import Cluster, get, until

pytestmark = pytest.mark.cluster

LIMITED = """
from swiftclaw import Agent

agent = Agent(name="limited")


@agent.rate_limit(requests=10, window="1h", key="user_id")
async def handle(message, user_id):
    yield f"{user_id} said "
    yield message
"""
PAUSE_S = 0.15  # an exchange between gateways comes at least that often


@pytest.fixture(scope="module")
def cluster(shared: Cluster) -> Cluster:
    (shared.folder / "limited.py").write_text(LIMITED)
    write(shared, {"enabled": True, "requests": 30, "window": "1h"})
    shared.up()
    return shared


def write(cluster: Cluster, block: dict[str, Any]) -> None:
    common = {"regions": {"us-east-1": {"instances": 2}}}
    cluster.write(
        {
            "per-user": {"agent": "limited:agent", **common},
            "in-all": {"agent": "examples.minimal:agent", "rateLimit": block, **common},
        }
    )


def ask(cluster: Cluster, agent: str, **body: Any) -> tuple[int, dict[str, str], str]:
    """On a connection of its own: which gateway gets it is chance."""
    request = urllib.request.Request(
        f"{cluster.url}/agents/{agent}/messages",
        data=json.dumps({"message": "hi", **body}).encode(),
        headers={"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read().decode()


def statuses(cluster: Cluster, agent: str, times: int, pause_s: float = 0.0, **body: Any) -> Counter[int]:
    found: Counter[int] = Counter()
    for _ in range(times):
        found[ask(cluster, agent, **body)[0]] += 1
        time.sleep(pause_s)
    return found


def refused_everywhere(cluster: Cluster, agent: str, **body: Any) -> bool:
    return set(statuses(cluster, agent, 20, **body)) == {429}


def counted(cluster: Cluster, agent: str) -> int:
    (value,) = re.findall(
        rf'^swiftclaw_rate_limited_total{{agent="{agent}"}} (\d+)', get(f"{cluster.admin}/metrics"), re.MULTILINE
    )
    return int(value)


def test_a_user_gets_the_limit_once_however_many_gateways_there_are(cluster: Cluster) -> None:
    assert len(cluster.gateways()) == 2
    let_through = statuses(cluster, "per-user", 14, PAUSE_S, user_id="anna")[200]
    until(lambda: refused_everywhere(cluster, "per-user", user_id="anna"), "both gateways to refuse anna")
    assert 10 <= let_through < 20, "each gateway by itself would let ten through"
    assert statuses(cluster, "per-user", 3, user_id="ben") == {200: 3}, "others notice nothing"


def test_a_burst_at_both_gateways_exceeds_the_limit_by_no_more_than_the_other_gateways_share(cluster: Cluster) -> None:
    answers = [ask(cluster, "per-user", user_id="carl", stream=True) for _ in range(60)]
    let_through = [(head, text) for status, head, text in answers if status == 200]
    assert 10 <= len(let_through) <= 20
    assert all(text.endswith("data: [DONE]\n\n") and "ratelimit" in head for head, text in let_through)
    until(lambda: refused_everywhere(cluster, "per-user", user_id="carl"), "both gateways to refuse carl")


def test_the_agents_own_limit_holds_over_both_gateways_and_refusals_are_counted(cluster: Cluster) -> None:
    before = counted(cluster, "in-all")
    answers = []
    for _ in range(36):
        time.sleep(PAUSE_S)
        answers.append(ask(cluster, "in-all"))
    found = Counter(status for status, _, _ in answers)
    assert set(found) == {200, 429} and 30 <= found[200] < 60
    assert all(head["ratelimit-policy"] == '"default";q=30;w=3600' for _, head, _ in answers)
    assert all(int(head["retry-after"]) > 3000 for status, head, _ in answers if status == 429)
    until(lambda: counted(cluster, "in-all") == before + found[429], "the refusals to be counted")
    (agent,) = [agent for agent in get(f"{cluster.admin}/api/agents") if agent["name"] == "in-all"]
    assert agent["errors"] == 0, "a refusal is no error of the agent"


def test_a_new_limit_holds_without_a_restart_and_what_was_let_through_stays_counted(cluster: Cluster) -> None:
    until(lambda: refused_everywhere(cluster, "in-all"), "both gateways to refuse")
    before = cluster.healthy("in-all"), cluster.healthy("per-user")
    write(cluster, {"enabled": True, "requests": 1000, "window": "1h"})
    cluster.up()
    until(lambda: statuses(cluster, "in-all", 10) == {200: 10}, "the new limit at both gateways")
    _, head, _ = ask(cluster, "in-all")
    remaining = int(re.findall(r"r=(\d+)", head["ratelimit"])[0])
    assert remaining < 1000 - 30, "the thirty of before among them"
    assert (cluster.healthy("in-all"), cluster.healthy("per-user")) == before
    until(lambda: refused_everywhere(cluster, "per-user", user_id="anna"), "anna still to be refused")
