"""How does an agent's block become its settings?

Three things make it more than a table: `config: FILE` brings in blocks from a file, `healthCheck` may stand in two places,
and some defaults and rules concern several blocks at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.config import values
from cluster.config.agent_settings import AgentSettings, RegionSettings, Scaling
from cluster.config.documents import merged, only_in, read_document
from cluster.config.fields import Reader, Schema, block_schema, read_block, reads
from cluster.config.mistakes import Location, Steps, did_you_mean, dotted, shown

HEALTH = ("healthCheck",)
INNER_HEALTH = ("loadBalancing", "healthCheck")


CONFIG = Reader(
    values.file_path,
    {**values.file_path.schema, "description": "File with more settings of this agent; those in cluster.yaml take precedence."},
)


def _schema() -> Schema:
    """An agent's block; with `config`, the file may be what names the Agent."""
    schema = block_schema(AgentSettings, also={"config": CONFIG})
    del schema["required"]
    return {**schema, "anyOf": [{"required": ["agent"]}, {"required": ["config"]}]}


@reads(_schema())
def read_agent(value: object, at: Location) -> AgentSettings:
    """The settings of the agent whose name is the last step of the path."""
    settings, moved = _hoisted(value)
    for steps, real in moved.items():
        at.log.origins[at.steps + steps] = (None, at.steps + real)
    if isinstance(settings, Mapping) and settings.get("config") is not None:
        settings = _with_file(settings, at.step("config"), at)
    agent = read_block(AgentSettings, settings, at, also={"config": CONFIG}, name=str(at.steps[-1]))
    agent = _settled(agent, at)
    _check_regions(agent, at)
    depth = len(at.steps)
    written = (steps[depth:] for steps in at.log.written if steps[:depth] == at.steps and len(steps) > depth)
    return replace(agent, written=frozenset(map(dotted, written)))


def _with_file(settings: Mapping[Any, Any], at: Location, agent: Location) -> Mapping[Any, Any]:
    """The block with what the file at `config` adds to it."""
    rest = {name: item for name, item in settings.items() if name != "config"}
    at.log.note(at.steps)
    path = at.read(values.file_path, settings["config"])
    document = path and at.read(lambda given, _: read_document(Path(str(given))), path)
    if not document:
        return rest
    name = str(settings["config"])
    if not isinstance(document.content, Mapping):
        at.mistake(f"{name} must contain an agent's blocks of settings, not {shown(document.content)}")
        return rest
    added, moved = _hoisted(document.content)
    for steps, sentence in document.complaints:
        at.log.mistakes.append((at.steps, f"{name}: {dotted(steps)}: {sentence}"))
    for steps in (*only_in(added, rest), *moved):
        if not _value_at(rest, steps):
            agent.log.origins[agent.steps + steps] = (name, moved.get(steps, steps))
    return merged(rest, added)


def _hoisted(value: Any) -> tuple[Any, dict[Steps, Steps]]:
    """The block with loadBalancing.healthCheck moved out, where the outer one wins; and where what moved came from."""
    inner = _value_at(value, INNER_HEALTH)
    if inner is None:
        return value, {}
    outer = value.get("healthCheck")
    inside = {name: item for name, item in value["loadBalancing"].items() if name != "healthCheck"}
    block = {**value, "loadBalancing": inside}
    if isinstance(inner, Mapping) and isinstance(outer, Mapping):
        moved = {HEALTH + steps: INNER_HEALTH + steps for steps in only_in(inner, outer)}
        return {**block, "healthCheck": merged(outer, inner)}, moved
    if outer is None or not isinstance(inner, Mapping):
        return {**block, "healthCheck": inner}, {HEALTH: INNER_HEALTH}
    return block, {}


def _value_at(block: Any, steps: Steps) -> Any:
    for step in steps:
        block = block.get(step) if isinstance(block, Mapping) else None
    return block


def _settled(agent: AgentSettings, at: Location) -> AgentSettings:
    """With the defaults that depend on other blocks."""
    scaling = agent.scaling
    if scaling and scaling.target_cpu is None and scaling.target_connections is None:
        scaling = replace(scaling, target_cpu=70.0, target_connections=80.0)
    least = scaling.min_instances if scaling else 1
    is_default = at.step("regions").steps not in at.log.written or not agent.regions
    names = agent.load_balancing.regions or ("local",)  # a block that only names regions for `geographic` runs in them
    regions = {name: RegionSettings(least) for name in names} if is_default else agent.regions
    return replace(
        agent,
        scaling=scaling,
        regions={name: _started(region, least) for name, region in regions.items()},
    )


def _started(region: RegionSettings, least: int) -> RegionSettings:
    own: int | None = region.instances  # None: not set
    if own is None:
        own = least if region.min_instances is None else region.min_instances
    return replace(region, instances=own)


def _check_regions(agent: AgentSettings, at: Location) -> None:
    if not at.clean("regions", "scaling"):
        return
    if agent.scaling and agent.scaling.min_instances > agent.scaling.max_instances:
        _max_below_min(at.step("scaling"), agent.scaling.max_instances, agent.scaling.min_instances)
    else:
        for name, region in agent.regions.items():
            _check_bounds(region, agent.scaling, at.step("regions").step(name))
    balancing = at.step("loadBalancing").step("regions")
    for i, name in enumerate(agent.load_balancing.regions if balancing.clean() else ()):
        if name not in agent.regions:
            hint = did_you_mean(name, agent.regions)
            balancing.item(i).mistake(f"{shown(name)} is not a region of this agent ({', '.join(agent.regions)}){hint}")


def _check_bounds(region: RegionSettings, scaling: Scaling | None, at: Location) -> None:
    low, high = region.min_instances, region.max_instances
    if scaling:
        low = scaling.min_instances if low is None else low
        high = scaling.max_instances if high is None else high
    if low is not None and high is not None and high < low:
        _max_below_min(at, high, low)


def _max_below_min(at: Location, high: int, low: int) -> None:
    at.step("maxInstances").mistake(f"{high} is less than minInstances, which is {low}")
