"""What does cluster.yaml ask for? The file becomes frozen settings, or one ConfigError that lists every mistake in it.

`load` reads the file, `parse` the args that Ray Serve hands on from it. The blocks of an agent are in `agent_settings`, the
readers of single values in `values`, how blocks are read in `fields`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

from cluster.config import values
from cluster.config.agent_reader import read_agent
from cluster.config.agent_settings import AgentSettings
from cluster.config.cors_settings import CorsSettings, read_cors
from cluster.config.documents import read_document
from cluster.config.fields import block, each, keys_of, name_of, named, plain, read_block, reads, setting, write_block
from cluster.config.mistakes import ConfigError, Location, MistakeLog, dotted, shown
from cluster.config.serve_file import unknown_keys

APPLICATION = "deployments.app:build"
PORT = values.whole(1, 65535, "port")


@dataclass(frozen=True, slots=True)
class AdminSettings:
    host: str = setting("host", values.host, "Address to listen on. The port has no authentication.", default="127.0.0.1")
    port: int = setting("port", PORT, "Port of metrics, API and dashboard.", default=8001)


@dataclass(frozen=True, slots=True)
class TlsSettings:
    cert: str = setting("cert", values.file_path, "PEM file of the certificate with its chain.")
    key: str = setting("key", values.file_path, "PEM file of the private key, without a password.")


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    region: str = setting(
        "region", values.region, "Where the gateway runs. Default: the first region of the first agent.", later=True
    )
    host: str = setting(
        "host", values.host, "Address to listen on; 0.0.0.0 accepts connections from other machines.", default="127.0.0.1"
    )
    port: int = setting("port", PORT, "The public port.", default=8000)
    replicas: int = setting("replicas", values.whole(1), "Gateway processes that share the port.", default=2)
    workers: int | Literal["auto"] = setting(
        "workers",
        values.workers,
        "Processes without Ray that forward for each replica: more requests per second. `auto`: one per core. Default: none; "
        "the replica forwards itself.",
        default=0,
    )
    tls: TlsSettings | None = setting("tls", block(TlsSettings), "Certificate for HTTPS. Default: HTTP.", default=None)


@dataclass(frozen=True, slots=True)
class HttpSettings:
    max_body_bytes: int = setting(
        "maxBodyBytes", values.size_bytes, "Largest request body; a larger one receives status 413.", default=100 * 2**20
    )
    cors: CorsSettings | None = setting(
        "cors", read_cors, "Web pages of other origins that may call the gateways. Default: none.", default=None
    )


DISTANCES = named("region", named("region", values.distance_ms))


@reads(DISTANCES.schema)
def _read_distances(value: object, at: Location) -> dict[str, dict[str, float]]:
    """Milliseconds between regions, both ways, from a mapping that says each pair at least once."""
    given: dict[str, dict[str, float]] = DISTANCES(value, at)
    distances_ms: dict[str, dict[str, float]] = {}
    for one, others in given.items():
        for other, ms in others.items():
            spot = at.step(one).step(other)
            if one == other and ms:
                spot.mistake("the distance from a region to itself must be 0")
            elif distances_ms.setdefault(one, {}).setdefault(other, ms) != ms:
                spot.mistake(f"is {ms:g}ms here, but {distances_ms[one][other]:g}ms in the opposite direction; make them equal")
            distances_ms.setdefault(other, {}).setdefault(one, ms)
    return distances_ms


def _write_distances(distances_ms: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {one: {other: plain(ms / 1000) for other, ms in others.items()} for one, others in distances_ms.items()}


def _write_agents(agents: Mapping[str, AgentSettings]) -> dict[str, object]:
    return {name: agent.to_block() for name, agent in agents.items()}


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that cluster.yaml says. `distances_ms` is symmetric; `written` are the paths that the file spelled out
    itself (the agents' are in their own), which is no part of what it asks for."""

    folder: str
    admin: AdminSettings = setting("admin", block(AdminSettings), "The admin port: read-only.", factory=AdminSettings)
    gateways: tuple[GatewaySettings, ...] = setting(
        "gateways",
        each(block(GatewaySettings), "gateways"),
        "One entry per region that has a public port. Default: one, on port 8000.",
        default=(GatewaySettings("local"),),
        later=True,
    )
    state_dir: str = setting(
        "stateDir",
        values.file_path,
        "Folder for the saved desired state, relative to this file.",
        default=".swiftclaw",
        later=True,
    )
    http: HttpSettings = setting("http", block(HttpSettings), "HTTP at the gateways.", factory=HttpSettings)
    client_regions: dict[str, str] = setting(
        "clientRegions", values.client_regions, "geographic: the region of the clients in each network.", factory=dict
    )
    trusted_proxies: tuple[str, ...] = setting(
        "trustedProxies", each(values.network, "networks"), "Proxies whose x-forwarded-for header is trusted.", default=()
    )
    distances_ms: dict[str, dict[str, float]] = setting(
        "distances",
        _read_distances,
        "Round-trip times between regions, equal in both directions. Default: measured.",
        factory=dict,
        write=_write_distances,
    )
    agents: dict[str, AgentSettings] = setting(
        "agents", named("agent", read_agent), "The agents, each by its name in this cluster.", factory=dict, write=_write_agents
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
    for steps, sentence in unknown_keys(document.content, index, keys_of(Settings)):
        log.add(steps, sentence)
    return _read(args, Location((), log, path.absolute().parent))


def parse(args: Mapping[str, object], folder: Path) -> Settings:
    """The settings in the application's `args`; relative paths start from `folder`. Raises ConfigError."""
    return _read(args, Location((), MistakeLog(), folder))


def agent_from_block(name: str, block: Mapping[str, object], folder: Path) -> AgentSettings:
    """One agent's settings; `{"config": FILE, ...}` reads a file. Raises ConfigError."""
    at = Location(("agents", name), MistakeLog(), folder)
    at.read(name_of("agent"), name)
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
        others = ", ".join(shown(name) for name in paths) or "none"
        count = "no application" if not ours else "more than one application"
        raise ConfigError(f"{path}: {count} has import_path: {APPLICATION} (found: {others})")
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
    is_default = at.step("gateways").steps not in at.log.written
    gateways = (GatewaySettings(first),) if is_default else settings.gateways
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
        places.mistake("needs at least one gateway; remove the key to use the default gateway")
    for (i, one), (j, other) in combinations(enumerate(settings.gateways), 2):
        if one.region == other.region:
            places.item(j).mistake(
                f"region {other.region} already has a gateway; choose another region, or give that gateway more replicas"
            )
        elif _overlap(one, other):
            places.item(j).step("port").mistake(f"{other.port} is already used by gateways[{i}] on {one.host}")
    for i, gateway in enumerate(settings.gateways):
        if at.clean("admin") and _overlap(gateway, settings.admin):
            places.item(i).step("port").mistake(f"{gateway.port} is already used as the admin port on {settings.admin.host}")


def _overlap(one: GatewaySettings | AdminSettings, other: GatewaySettings | AdminSettings) -> bool:
    hosts = {"127.0.0.1" if host == "localhost" else host for host in (one.host, other.host)}
    return one.port == other.port and (len(hosts) == 1 or bool(hosts & {"0.0.0.0", "::"}))


def _refuse_mistakes(log: MistakeLog) -> None:
    if log.mistakes:
        raise ConfigError(*log.in_order())
