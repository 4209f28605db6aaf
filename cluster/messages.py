"""The messages between processes: what instances and gateways report to the Controller, and what it sends to gateways.

Plain frozen dataclasses. They are pickled and signed by cluster/transport/rpc.py and sent over HTTP; Ray only carries
`InstanceSpec`. A gateway keeps working from its last `Snapshot` while the Controller is away.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.config import AgentSettings, GatewaySettings, HttpSettings
from cluster.instance_state import InstanceState
from policies.breaker import BreakerUpdate
from policies.lifecycle.draining import DrainTerms
from policies.rate_limit import RateRule
from policies.sessions.moved import Cause

# Headers between gateways and instances; they never leave the cluster.
KEY_HEADER = b"x-swiftclaw-key"  # the cluster's secret, by which an instance recognizes a gateway
SESSION_HEADER = b"x-swiftclaw-session"  # the session id, percent-encoded
SESSION_MOVED_HEADER = b"x-swiftclaw-session-moved"  # the session has lived at another instance until now
LOAD_HEADER = b"x-swiftclaw-load"  # "<in flight> <in flight on arrival> <cpu percent>" of the responding instance
ORIGIN_HEADER = b"x-swiftclaw-origin"  # JSON: how the client sent a request for the mounted app
LIMIT_HEADER = b"x-swiftclaw-limit"  # maximum number of requests in flight on an instance
REFUSED_HEADER = b"x-swiftclaw-not-executed"  # the instance refused the request before starting it: safe to retry elsewhere

# Values of REFUSED_HEADER.
FULL = b"full"
CLOSING = b"closing"

# Paths of an instance. The mounted app has a prefix of its own, so that the two cannot collide.
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
    """The arguments that a replica of an instance app is started with."""

    agent: str  # its name in this cluster
    target: str  # module:attribute
    folder: str  # first on the import path
    version: str
    region: str
    app: str  # the Serve app it belongs to
    host: str = ""  # the address to listen on; "": the node's address
    package: str = ""  # digest of the version's code (cluster/desired/packages.py); "": the folder as it is


@dataclass(frozen=True)
class StartRequest:
    """A new instance process asks whether it may load the agent's code. `crashes`, `wait_s`: as in its last permit."""

    app: str
    agent: str
    version: str
    region: str
    replica: str
    crashes: int = 0
    wait_s: float = 0.0


@dataclass(frozen=True)
class StartPermit:
    """`wait_s`: 0: start now; else ask again. `crashes`: how often this instance has crashed in a row, soon after its start."""

    wait_s: float
    crashes: int


@dataclass(frozen=True)
class Registration:
    """An instance registers. `id` is set when it registers again, after the Controller was away."""

    agent: str
    version: str
    region: str
    app: str
    replica: str  # Serve's unique replica id; a restarted process has a new one
    host: str
    port: int
    pid: int
    node: str
    started_at: float  # seconds since the epoch
    session_affinity: bool = False  # as set by Agent(session_affinity=…)
    rate_rules: tuple[RateRule, ...] = ()  # as set by @agent.rate_limit
    id: str | None = None
    package: str = ""  # digest of the code that it runs
    crashes: int = 0  # as in the permit to start


@dataclass(frozen=True)
class RegistrationReply:
    """The Controller's answer to a registration."""

    id: str  # instance-N
    key: str  # the cluster's secret
    drain: DrainTerms = field(default_factory=DrainTerms)  # used when the instance stops while the Controller is away
    wants_code: bool = False  # the Controller has lost the package that the instance runs


@dataclass(frozen=True)
class Member:
    """One instance, as gateways see it."""

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
    """How an agent's traffic is split among versions. `leaving`: versions that keep existing sessions until they drain."""

    stable: str
    canary: str | None = None
    percent: float = 0.0  # of the canary
    leaving: tuple[str, ...] = ()


@dataclass(frozen=True)
class AgentView:
    """One agent, as gateways see it."""

    settings: AgentSettings
    session_affinity: bool
    members: tuple[Member, ...]
    versions: VersionShare | None = None  # None: all members share the traffic
    rate_rules: tuple[RateRule, ...] = ()  # of the newest running version
    may_be_none: bool = False  # no instance is needed while no request waits
    coming: bool = False  # an instance is starting, or autoscaling starts one when a request waits


class BreakerReport(NamedTuple):
    """The latest report of any gateway about one instance's breaker. `number` grows with every report."""

    number: int
    gateway: str
    news: BreakerUpdate


@dataclass(frozen=True)
class Peer:
    """A gateway, and the address where it listens for other gateways."""

    gateway: str
    host: str
    port: int


@dataclass(frozen=True)
class Snapshot:
    """Everything that a gateway needs to serve requests. Snapshots with the same `version` are equal."""

    version: str
    key: str
    http: HttpSettings
    agents: dict[str, AgentView]
    session_keys: tuple[str, ...]  # hexadecimal; the first one signs, all verify
    client_regions: dict[str, str] = field(default_factory=dict)
    trusted_proxies: tuple[str, ...] = ()
    distances_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    circuits: dict[str, BreakerReport] = field(default_factory=dict)  # by replica
    peers: tuple[Peer, ...] = ()  # all gateways, including the receiver
    desired: dict[str, object] = field(default_factory=dict)  # for a Controller that lost its state folder


@dataclass(frozen=True)
class GatewayHello:
    """A gateway introduces itself, with every request for a snapshot."""

    gateway: str  # Serve's unique replica id
    app: str
    settings: GatewaySettings
    node: str
    pid: int
    host: str = ""  # address for other gateways
    port: int = 0
    desired: dict[str, object] = field(default_factory=dict)  # as of its last snapshot
    worker_of: str = ""  # the gateway that started this process; "": it is a Serve replica


@dataclass(frozen=True)
class InstanceCounts:
    """What one gateway counted for one instance since its last observation; `active` is the current number in flight."""

    active: int = 0
    codes: dict[int, int] = field(default_factory=dict)
    durations: tuple[int, ...] = ()  # counts per bucket of `tally.BUCKETS_S`
    duration_sum_s: float = 0.0
    first_bytes: tuple[int, ...] = ()
    first_byte_sum_s: float = 0.0
    routings: tuple[int, ...] = ()  # counts per bucket of `tally.ROUTING_BUCKETS_S`
    routing_sum_s: float = 0.0


@dataclass(frozen=True)
class Rejected:
    """The reply to an operator's request that the Controller rejects; `reason` is a sentence."""

    reason: str


@dataclass(frozen=True)
class Observation:
    """What one gateway counted since its last observation, by (agent, version, region, instance)."""

    gateway: str
    instances: dict[tuple[str, str, str, str], InstanceCounts]
    refusals: dict[tuple[str, int], int] = field(default_factory=dict)  # (agent, status) of requests that reached no instance
    unreachable: frozenset[tuple[str, str]] = frozenset()  # (agent, replica) of refused connections
    circuits: dict[tuple[str, str], BreakerUpdate] = field(default_factory=dict)  # by (agent, replica): breakers that changed
    retries: dict[str, int] = field(default_factory=dict)  # by agent, since the last observation
    moved_sessions: dict[tuple[str, Cause], int] = field(default_factory=dict)  # by (agent, cause), since the last observation
    queued: dict[str, int] = field(default_factory=dict)  # by agent: requests in the wait queue now
    tasks: int = 0  # unfinished asyncio tasks in the gateway's process now; 0: it stops
    orphaned: bool = False  # delivered by another gateway: this one's process has ended
    batch: int = 0  # grows by one; a batch that arrives again is not counted again. 0: unnumbered
    distances_ms: dict[str, dict[str, float]] = field(default_factory=dict)  # measured between regions; each pair once
