"""What in a valid cluster.yaml has no effect, or another one than its writer may expect? For `check` and `up`.

A block such as `rateLimit` has to be switched on: one that is written without `enabled` changes nothing. `enabled: false` is
a decision, and not reported.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.config.agent_settings import AgentSettings
from cluster.config.settings import Settings

AFFINITY = "loadBalancing.sessionAffinity"
WINDOW = "loadBalancing.window"


def without_effect(settings: Settings) -> list[str]:
    """A sentence for each block that does nothing as it stands."""
    agents = settings.agents.items()
    return [warning for name, agent in agents for warning in (*_idle_blocks(name, agent), *_without_strategy(name, agent))]


def scaling_notes(settings: Settings) -> list[str]:
    """A sentence for each agent whose scaling bounds, which hold per region, add up to others."""
    return [
        f"agents.{name}.scaling: the bounds hold per region; over {len(agent.regions)} regions they allow "
        f"{least} to {most} instances"
        for name, agent in settings.agents.items()
        if agent.scaling is not None and len(agent.regions) > 1
        for least, most in [_bounds(agent)]
    ]


def _idle_blocks(name: str, agent: AgentSettings) -> Iterator[str]:
    for block, enabled in (("rateLimit", agent.rate_limit.enabled), ("accessLog", agent.access_log.enabled)):
        if not enabled and _is_written(agent, block):
            yield f"agents.{name}.{block} has no effect: add `enabled: true` to it"
    if agent.load_balancing.session_affinity.enabled is None and _is_written(agent, AFFINITY):
        yield (
            f"agents.{name}.{AFFINITY} has no effect unless the agent's code sets session_affinity: add `enabled: true` to it"
        )


def _without_strategy(name: str, agent: AgentSettings) -> Iterator[str]:
    strategy = agent.load_balancing.strategy
    if strategy != "response-time" and _is_written(agent, WINDOW):
        yield f"agents.{name}.{WINDOW} has no effect: strategy {strategy} does not measure response times"


def _is_written(agent: AgentSettings, block: str) -> bool:
    """Whether the block stands in the file, without `enabled`."""
    paths = {path for path in agent.written if path == block or path.startswith(f"{block}.")}
    return bool(paths) and f"{block}.enabled" not in paths


def _bounds(agent: AgentSettings) -> tuple[int, int]:
    scaling = agent.scaling
    assert scaling is not None
    regions = agent.regions.values()
    least = sum(scaling.min_instances if own.min_instances is None else own.min_instances for own in regions)
    most = sum(scaling.max_instances if own.max_instances is None else own.max_instances for own in regions)
    return least, most
