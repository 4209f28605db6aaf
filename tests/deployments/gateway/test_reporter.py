"""What a gateway reports to the Controller: each count once, however often a batch is sent, with the states of the moment."""

from __future__ import annotations

from random import Random

from deployments.balancing.agents import AgentTable
from deployments.balancing.backend import Lease
from deployments.gateway.reporter import Reporter
from policies.base import Request
from policies.errors import RateLimited, UnknownAgent
from tests.deployments.helpers import member, snapshot

KEY = ("a", "v1", "us", "instance-1")


class Site:
    """One gateway with instance-1 of agent `a`."""

    def __init__(self) -> None:
        self.agents = AgentTable(Random(1), "g1")
        self.reporter = Reporter(self.agents)
        self.replace("r1")

    def replace(self, replica: str) -> None:
        """The instance is a new process from now on."""
        self.reporter.track(self.agents.apply(snapshot(member(1, replica=replica), version=replica)))

    def lease(self) -> Lease:
        return self.agents.pool("a").choose(Request(agent="a", now=0.0), (), 0.0)

    def answer(self, count: int) -> None:
        for _ in range(count):
            self.lease().release(200, 0.5)

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.lease().release(502, 0.5, ok=False)


def test_requests_in_flight_on_a_removed_process_are_reported_until_they_end() -> None:
    site = Site()
    lease = site.lease()
    site.replace("r2")
    assert site.reporter.observation().instances[KEY].active == 1
    site.reporter.delivered()
    lease.release(502, 1.0)
    last = site.reporter.observation().instances[KEY]
    assert (last.active, last.codes) == (0, {502: 1})
    site.reporter.delivered()
    assert site.reporter.observation().instances[KEY].codes == {}


def test_an_undelivered_batch_is_sent_again_before_what_was_counted_since() -> None:
    site, sent = Site(), []
    for count in (1, 2, 4):
        site.answer(count)
        observation = site.reporter.observation()
        sent.append((observation.batch, observation.instances[KEY].codes))
    assert sent == [(1, {200: 1})] * 3
    for expected in ((2, {200: 6}), (3, {})):
        site.reporter.delivered()
        observation = site.reporter.observation()
        assert (observation.batch, observation.instances[KEY].codes) == expected


def test_a_batch_that_is_sent_again_has_the_old_counts_and_the_states_of_now() -> None:
    site = Site()
    site.reporter.observation()
    site.agents.pool("a").mark_unreachable(site.lease().backend, 0.0)
    observation = site.reporter.observation()
    assert observation.instances[KEY].active == 1
    assert observation.unreachable == site.reporter.observation().unreachable == {("a", "r1")}
    site.reporter.delivered()
    assert site.reporter.observation().unreachable == frozenset()


def test_measured_distances_are_reported_as_they_are_now() -> None:
    site = Site()
    site.agents.distances.measured("us", "eu", 80.0)
    assert site.reporter.observation().distances_ms == {"eu": {"us": 80.0}}
    site.agents.distances.measured("us", "eu", 75.0)
    assert site.reporter.observation().distances_ms == {"eu": {"us": 75.0}}


def test_an_unreachable_instance_and_a_breaker_that_opened_are_urgent_until_they_are_in_an_observation() -> None:
    site = Site()
    assert not site.reporter.is_urgent
    lease = site.lease()
    lease.release(None, 0.5)
    site.agents.pool("a").mark_unreachable(lease.backend, 0.0)
    assert site.reporter.is_urgent
    site.reporter.observation()
    assert not site.reporter.is_urgent
    site.replace("r2")
    site.fail(5)
    assert site.reporter.is_urgent
    assert list(site.reporter.observation().circuits) == [("a", "r2")]
    assert not site.reporter.is_urgent


def test_refusals_count_by_agent_and_those_of_unknown_agents_together() -> None:
    site = Site()
    site.reporter.refused(RateLimited("too many", agent="a"))
    site.reporter.refused(UnknownAgent("no such agent", agent="b"))
    site.reporter.refused(UnknownAgent("no such agent", agent="c"))
    site.reporter.rejected(431)
    assert site.reporter.observation().refusals == {("a", 429): 1, ("", 404): 2, ("", 431): 1}
    site.reporter.delivered()
    assert site.reporter.observation().refusals == {}
