"""What the processes tell each other: instances and gateways to the Controller, the Controller to gateways.

Plain frozen dataclasses, pickled by Ray. A gateway works from its last `Snapshot` for as long as it must.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.config import AgentSettings, GatewaySettings, HttpSettings
from cluster.instance_state import InstanceState
from policies.breaker import BreakerUpdate
from policies.lifecycle.draining import DrainTerms
from policies.rate_limit import RateRule

# Headers that never leave the cluster: set by a gateway for an instance or by an instance for a gateway.
KEY_HEADER = b"x-swiftclaw-key"  # the secret by which an instance knows a gateway
SESSION_HEADER = b"x-swiftclaw-session"  # the session's name, percent-encoded
LOAD_HEADER = b"x-swiftclaw-load"  # "<in flight> <in flight on arrival> <cpu percent>" of the answering instance
LIMIT_HEADER = b"x-swiftclaw-limit"  # the most requests that an instance may have in flight
REFUSED_HEADER = b"x-swiftclaw-not-executed"  # the instance refused before it began: safe to ask another

# What stands in REFUSED_HEADER.
FULL = b"full"
CLOSING = b"closing"

# Where an instance answers what; the mounted app has a prefix of its own, so that the two cannot collide.
MESSAGES_PATH = "/messages"
CHAT_PATH = "/chat"
WATCH_PATH = "/-/watch"
PING_PATH = "/-/ping"
CHECK_PATH = "/-/check"
KILL_PATH = "/-/kill"
DRAIN_PATH = "/-/drain"
PEERS_PATH = "/-/peers"  # at a gateway, for the others
APP_PREFIX = "/app"


@dataclass(frozen=True)
class InstanceSpec:
    """What a replica of an instance app is started with."""

    agent: str  # its name in this cluster
    target: str  # module:attribute
    folder: str  # first on the import path
    version: str
    region: str
    app: str  # the Serve app it belongs to
    host: str = ""  # where it listens; "": on its node's address
    package: str = ""  # the digest of its version's code (cluster/desired/packages.py); "": the folder as it is


@dataclass(frozen=True)
class Registration:
    """An instance presents itself. `id` is set when it only says that it still runs (the Controller had gone)."""

    agent: str
    version: str
    region: str
    app: str
    replica: str  # Serve's unique id: a restarted process has another
    host: str
    port: int
    pid: int
    node: str
    started_at: float  # seconds since the epoch
    session_affinity: bool = False  # what Agent(session_affinity=…) says
    rate_rules: tuple[RateRule, ...] = ()  # what @agent.rate_limit says
    id: str | None = None
    package: str = ""  # the code it runs


@dataclass(frozen=True)
class RegistrationReply:
    """The Controller's answer to a registration."""

    id: str  # instance-N
    key: str  # the cluster's secret
    drain: DrainTerms = field(default_factory=DrainTerms)  # for an instance that has to leave while the Controller is away
    wants_code: bool = False  # the Controller has lost the package that the instance runs


@dataclass(frozen=True)
class Member:
    """One instance as the gateways are told of it."""

    id: str
    replica: str
    host: str
    port: int
    version: str
    region: str
    priority: int
    state: InstanceState
    started_at: float = 0.0  # seconds since the epoch


@dataclass(frozen=True)
class VersionShare:
    """Which versions of an agent get which traffic. `leaving`: sessions that live there may stay until they drain."""

    stable: str
    canary: str | None = None
    percent: float = 0.0  # of the canary
    leaving: tuple[str, ...] = ()


@dataclass(frozen=True)
class AgentView:
    """One agent as the gateways are told of it."""

    settings: AgentSettings
    session_affinity: bool
    members: tuple[Member, ...]
    versions: VersionShare | None = None  # None: all members alike
    rate_rules: tuple[RateRule, ...] = ()  # of the newest version that runs


class BreakerReport(NamedTuple):
    """The newest word of any gateway on one instance's breaker. `number` grows with each."""

    number: int
    gateway: str
    news: BreakerUpdate


@dataclass(frozen=True)
class Peer:
    """A gateway, and where it listens for the others."""

    gateway: str
    host: str
    port: int


@dataclass(frozen=True)
class Snapshot:
    """All that a gateway needs to answer requests. Two snapshots with the same `version` are the same."""

    version: str
    key: str
    http: HttpSettings
    agents: dict[str, AgentView]
    session_keys: tuple[str, ...]  # hexadecimal; the first signs, all verify
    client_regions: dict[str, str] = field(default_factory=dict)
    trusted_proxies: tuple[str, ...] = ()
    distances_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    circuits: dict[str, BreakerReport] = field(default_factory=dict)  # by replica
    peers: tuple[Peer, ...] = ()  # all gateways, the reader among them
    desired: dict[str, object] = field(default_factory=dict)  # the Controller's, kept for it should it lose its folder


@dataclass(frozen=True)
class GatewayHello:
    """A gateway presents itself, with every request for news."""

    gateway: str  # Serve's unique replica id
    app: str
    settings: GatewaySettings
    node: str
    pid: int
    host: str = ""  # where it listens for other gateways
    port: int = 0
    desired: dict[str, object] = field(default_factory=dict)  # of its last snapshot


@dataclass(frozen=True)
class InstanceCounts:
    """What one gateway saw of one instance since its last observation; `active` is what it has there now."""

    active: int = 0
    codes: dict[int, int] = field(default_factory=dict)
    durations: tuple[int, ...] = ()  # counts per bucket of `metrics.BUCKETS_S`
    duration_sum_s: float = 0.0
    first_bytes: tuple[int, ...] = ()
    first_byte_sum_s: float = 0.0
    routings: tuple[int, ...] = ()  # counts per bucket of `metrics.ROUTING_BUCKETS_S`
    routing_sum_s: float = 0.0


@dataclass(frozen=True)
class Observation:
    """What one gateway saw since its last observation, keyed by (agent, version, region, instance)."""

    gateway: str
    instances: dict[tuple[str, str, str, str], InstanceCounts]
    refusals: dict[tuple[str, int], int] = field(default_factory=dict)  # (agent, status): no instance was reached
    unreachable: frozenset[tuple[str, str]] = frozenset()  # (agent, replica) that refused a connection
    circuits: dict[tuple[str, str], BreakerUpdate] = field(default_factory=dict)  # (agent, replica) whose breaker has changed
    retries: dict[str, int] = field(default_factory=dict)  # by agent, since the last one
    queued: dict[str, int] = field(default_factory=dict)  # by agent: requests that wait for a place now
    batch: int = 0  # grows by one with each; what was counted is counted once, however often it comes. 0: it has none
    distances_ms: dict[str, dict[str, float]] = field(default_factory=dict)  # between regions, as measured; each pair once
