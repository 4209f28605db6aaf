"""What does cluster.yaml ask for? The file becomes frozen settings, or one ConfigError that lists every mistake in it.

`load` reads the file, `parse` the args that Ray Serve hands on from it. The blocks of an agent are in
`cluster.agent_settings`, what a single value may be in `cluster.values`, how blocks are read in `cluster.fields`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from cluster.config import values
from cluster.config.agent_block import read_agent
from cluster.config.agent_settings import (
    AgentSettings,
)
from cluster.config.documents import read_document
from cluster.config.fields import (
    ConfigError,
    Location,
    MistakeLog,
    block,
    dotted,
    each,
    name_of,
    named,
    plain,
    read_block,
    setting,
    shown,
    write_block,
)

APPLICATION = "deployments.app:build"


@dataclass(frozen=True, slots=True)
class AdminSettings:
    host: str = field(default="127.0.0.1", metadata=setting("host", values.host))
    port: int = field(default=8001, metadata=setting("port", values.whole(1, 65535, "port")))


@dataclass(frozen=True, slots=True)
class TlsSettings:
    cert: str = field(metadata=setting("cert", values.file_path))
    key: str = field(metadata=setting("key", values.file_path))


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    region: str = field(metadata=setting("region", values.region, later=True))  # default: the first agent's first
    host: str = field(default="127.0.0.1", metadata=setting("host", values.host))
    port: int = field(default=8000, metadata=setting("port", values.whole(1, 65535, "port")))
    replicas: int = field(default=2, metadata=setting("replicas", values.whole(1)))
    tls: TlsSettings | None = field(default=None, metadata=setting("tls", block(TlsSettings)))


@dataclass(frozen=True, slots=True)
class HttpSettings:
    max_body_bytes: int = field(default=100 * 2**20, metadata=setting("maxBodyBytes", values.size_bytes))


def _read_distances(value: object, at: Location) -> dict[str, dict[str, float]]:
    """Milliseconds between regions, both ways, from a mapping that says each pair at least once."""
    given: dict[str, dict[str, float]] = named("region", named("region", values.distance_ms))(value, at)
    found: dict[str, dict[str, float]] = {}
    for one, others in given.items():
        for other, ms in others.items():
            spot = at.step(one).step(other)
            if one == other and ms:
                spot.mistake("a region is at no distance from itself")
            elif found.setdefault(one, {}).setdefault(other, ms) != ms:
                spot.mistake(f"is {ms:g}ms here and {found[one][other]:g}ms the other way round")
            found.setdefault(other, {}).setdefault(one, ms)
    return found


def _write_distances(found: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {one: {other: plain(ms / 1000) for other, ms in others.items()} for one, others in found.items()}


def _write_agents(agents: Mapping[str, AgentSettings]) -> dict[str, object]:
    return {name: agent.to_block() for name, agent in agents.items()}


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that cluster.yaml says. `distances_ms` is symmetric; `written` are the paths that the file spelled out
    itself (the agents' are in their own), which is no part of what it asks for."""

    folder: str
    admin: AdminSettings = field(default_factory=AdminSettings, metadata=setting("admin", block(AdminSettings)))
    gateways: tuple[GatewaySettings, ...] = field(
        default=(GatewaySettings("local"),),
        metadata=setting("gateways", each(block(GatewaySettings), "gateways"), later=True),
    )
    state_dir: str = field(default=".swiftclaw", metadata=setting("stateDir", values.file_path, later=True))
    http: HttpSettings = field(default_factory=HttpSettings, metadata=setting("http", block(HttpSettings)))
    client_regions: dict[str, str] = field(default_factory=dict, metadata=setting("clientRegions", values.client_regions))
    trusted_proxies: tuple[str, ...] = field(default=(), metadata=setting("trustedProxies", each(values.network, "networks")))
    distances_ms: dict[str, dict[str, float]] = field(
        default_factory=dict, metadata=setting("distances", _read_distances, write=_write_distances)
    )
    agents: dict[str, AgentSettings] = field(
        default_factory=dict,
        metadata=setting("agents", named("agent", read_agent, name_of("agent")), write=_write_agents),
    )
    written: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    @property
    def regions(self) -> tuple[str, ...]:
        """All regions in the order in which they are first named, the gateways' first."""
        names = [gateway.region for gateway in self.gateways]
        names += [region for agent in self.agents.values() for region in agent.regions]
        return tuple(dict.fromkeys(names))

    def to_args(self) -> dict[str, object]:
        """Plain JSON that `parse` makes the same settings of: what was written, and what differs from the defaults."""
        return write_block(self, self.written)


def load(path: str | Path) -> Settings:
    """The settings in a Ray Serve config file. Raises ConfigError."""
    path = Path(path)
    document = read_document(path)
    index, args = _application(document.content, path)
    log, own = MistakeLog(), ("applications", index, "args")
    for steps, sentence in document.complaints:
        if steps[:3] == own and len(steps) > 3:
            log.add(steps[3:], sentence)
        elif steps[:-1] in ((), own[:2]):  # another application's args are not ours to judge
            log.add(steps, sentence)
    return _read(args, Location((), log, path.absolute().parent))


def parse(args: Mapping[str, object], folder: Path) -> Settings:
    """The settings in the application's `args`; relative paths start from `folder`. Raises ConfigError."""
    return _read(args, Location((), MistakeLog(), folder))


def agent_from_block(name: str, block: Mapping[str, object], folder: Path) -> AgentSettings:
    """One agent's settings; `{"config": FILE, ...}` reads a file. Raises ConfigError."""
    at = Location(("agents", name), MistakeLog(), folder)
    at.read(lambda given, _: name_of("agent")(given), name)
    agent: AgentSettings = at.read(read_agent, block)
    _refuse_mistakes(at.log)
    return agent


def _application(content: object, path: Path) -> tuple[int, object]:
    """Which of the file's applications is SwiftClaw, and its args."""
    if not isinstance(content, Mapping) or "applications" not in content:
        raise ConfigError(f"{path}: not a Ray Serve config file: it has no `applications`")
    applications = content["applications"]
    if not isinstance(applications, list):
        raise ConfigError(f"{path}: applications: {shown(applications)} is not a list of applications")
    paths = [entry.get("import_path") if isinstance(entry, Mapping) else None for entry in applications]
    ours = [i for i, name in enumerate(paths) if name in (APPLICATION, APPLICATION.replace(":", "."))]
    if len(ours) != 1:
        found = ", ".join(shown(name) for name in paths) or "none"
        count = "no application" if not ours else "more than one application"
        raise ConfigError(f"{path}: {count} has import_path: {APPLICATION} (found: {found})")
    return ours[0], applications[ours[0]].get("args")


def _read(args: object, at: Location) -> Settings:
    settings: Settings = at.read(_settings, args)
    _refuse_mistakes(at.log)
    written = (steps for steps in at.log.written if steps[0] != "agents" or len(steps) == 1)
    return replace(settings, written=frozenset(map(dotted, written)))


def _settings(args: object, at: Location) -> Settings:
    settings = read_block(Settings, args, at, folder=str(at.folder.absolute()))
    named_regions = [region for agent in settings.agents.values() for region in agent.regions]
    first = named_regions[0] if named_regions else "local"
    unsaid = at.step("gateways").steps not in at.log.written
    gateways = (GatewaySettings(first),) if unsaid else settings.gateways
    settings = replace(
        settings,
        state_dir=values.file_path(settings.state_dir, at),
        gateways=tuple(replace(gateway, region=gateway.region or first) for gateway in gateways),
    )
    if at.clean("gateways"):
        _check_gateways(settings, at)
    return settings


def _check_gateways(settings: Settings, at: Location) -> None:
    places = at.step("gateways")
    if not settings.gateways:
        places.mistake("needs at least one gateway; leave the key out to get one")
    for (i, one), (j, other) in combinations(enumerate(settings.gateways), 2):
        if one.region == other.region:
            places.item(j).mistake(f"region {other.region} has a gateway already; name another, or give that one more replicas")
        elif _overlap(one, other):
            places.item(j).step("port").mistake(f"{other.port} is taken by gateways[{i}] on {one.host}")
    for i, gateway in enumerate(settings.gateways):
        if at.clean("admin") and _overlap(gateway, settings.admin):
            places.item(i).step("port").mistake(f"{gateway.port} is the admin port on {settings.admin.host}")


def _overlap(one: GatewaySettings | AdminSettings, other: GatewaySettings | AdminSettings) -> bool:
    hosts = {"127.0.0.1" if host == "localhost" else host for host in (one.host, other.host)}
    return one.port == other.port and (len(hosts) == 1 or bool(hosts & {"0.0.0.0", "::"}))


def _refuse_mistakes(log: MistakeLog) -> None:
    if log.mistakes:
        raise ConfigError(*log.in_order())
