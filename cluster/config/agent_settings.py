"""What can be set for an agent? One frozen dataclass per block: names, units, allowed values, meanings and defaults.

A field's line here is all there is to a setting. `agent_reader` reads an agent's block from the file, `settings` has what is
not set for each agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.config import values
from cluster.config.fields import block, each, named, read_block, reads, setting, write_block
from cluster.config.mistakes import ConfigError, Location, shown
from policies import STRATEGIES
from policies.rate_limit import LIMITERS

PERCENT = values.number(0, 100, kind="percentage")
PERCENT_ABOVE_0 = values.number(0, 100, above=True, kind="percentage")
AFFINITY = values.choice("type of session affinity", "cookie", "header", "client-ip")


@dataclass(frozen=True, slots=True)
class Resources:
    """Of one instance, in Ray's units."""

    cpus: float = setting("cpus", values.number(), "CPUs that Ray reserves for each instance.", default=0.1)
    gpus: float = setting("gpus", values.number(), "GPUs that Ray reserves for each instance.", default=0.0)


@dataclass(frozen=True, slots=True)
class RegionSettings:
    instances: int = setting(
        "instances",
        values.whole(0),
        "Instances to start with. Default: the region's minInstances, else scaling.minInstances, else 1.",
        later=True,
    )
    priority: int = setting(
        "priority", values.whole(0), "Regions with the lowest number receive traffic first; equal numbers share it.", default=1
    )
    min_instances: int | None = setting("minInstances", values.whole(0), "Default: scaling.minInstances.", default=None)
    max_instances: int | None = setting("maxInstances", values.whole(0), "Default: scaling.maxInstances.", default=None)


REGIONS = named("region", block(RegionSettings))
REGION_NAMES = each(values.region, "regions")


@reads(REGIONS.schema | REGION_NAMES.schema | {"type": ["object", "array"], "uniqueItems": True})
def read_regions(value: object, at: Location) -> dict[str, RegionSettings]:
    """A mapping from regions to their blocks, or just a list of their names."""
    if not isinstance(value, list | tuple):
        regions: dict[str, RegionSettings] = REGIONS(value, at)
        return regions
    names = REGION_NAMES(value, at)
    if len(set(names)) < len(names):
        raise ConfigError(f"{shown(list(names))} lists a region twice")
    return {name: read_block(RegionSettings, None, at.step(name)) for name in names}


WEIGHTS = named("instance", values.number(kind="weight"), values.instance_name)


@reads(WEIGHTS.schema)
def read_weights(value: object, at: Location) -> dict[str, float]:
    weights: dict[str, float] = WEIGHTS(value, at)
    if weights and at.clean() and not any(weights.values()):
        raise ConfigError("all weights are 0, so no instance would receive requests; set at least one above 0")
    return weights


@dataclass(frozen=True, slots=True)
class LearnedSession:
    header: str | None = setting("header", values.header_name, "The header that names it, like Mcp-Session-Id.", default=None)
    cookie: str | None = setting("cookie", values.header_name, "The app's cookie that names it.", default=None)

    def __post_init__(self) -> None:
        if self.header is not None and self.cookie is not None:
            raise ConfigError("header and cookie exclude each other; give the one by which the app names its sessions")


@dataclass(frozen=True, slots=True)
class SessionAffinity:
    # None: the file does not say, so the Agent's own `session_affinity` holds.
    enabled: bool | None = setting("enabled", values.flag, "Default: the Agent's own session_affinity.", default=None)
    type: str = setting(
        "type", AFFINITY, "What identifies a session: a cookie, a header, or the client's IP address.", default="cookie"
    )
    ttl_s: float = setting("ttl", values.seconds(), "How long an unused session keeps its instance.", default=3600.0)
    learn: LearnedSession | None = setting(
        "learn", block(LearnedSession), "Sessions that the agent's own app creates: where it names them.", default=None
    )


@dataclass(frozen=True, slots=True)
class HealthCheck:
    enabled: bool = setting("enabled", values.flag, "Whether the Controller checks the instances.", default=True)
    interval_s: float = setting("interval", values.seconds(), "Time between two checks of an instance.", default=30.0)
    timeout_s: float = setting(
        "timeout", values.seconds(), "Time limit of a check; a slower one counts as failed.", default=5.0
    )
    unhealthy_threshold: int = setting(
        "unhealthyThreshold", values.whole(1), "Consecutive failed checks that make an instance unhealthy.", default=3
    )
    healthy_threshold: int = setting(
        "healthyThreshold", values.whole(1), "Consecutive passed checks that make it healthy again.", default=2
    )


HEALTH_CHECK = block(HealthCheck)


@dataclass(frozen=True, slots=True)
class LoadBalancing:
    strategy: str = setting(
        "strategy", values.choice("strategy", *STRATEGIES), "How an instance is chosen for a request.", default="round-robin"
    )
    window_s: float = setting("window", values.seconds(), "response-time: older responses are ignored.", default=300.0)
    regions: tuple[str, ...] = setting("regions", REGION_NAMES, "geographic: regions to route among; default: all.", default=())
    weighted: dict[str, float] = setting(
        "weighted", read_weights, "Weight by instance name. Default: the mean of the others. 0: no requests.", factory=dict
    )
    session_affinity: SessionAffinity = setting(
        "sessionAffinity", block(SessionAffinity), "Keeps a session's requests on one instance.", factory=SessionAffinity
    )
    slow_start_s: float = setting(
        "slowStart", values.seconds(zero=True), "Time in which a new instance ramps up to its full share.", default=0.0
    )


@dataclass(frozen=True, slots=True)
class Limits:
    max_connections: int = setting(
        "maxConnections", values.whole(1), "Maximum requests in flight on all instances; as many more may wait.", default=1000
    )
    max_connections_per_instance: int = setting(
        "maxConnectionsPerInstance", values.whole(1), "Maximum requests in flight on one instance; others wait.", default=100
    )
    connection_timeout_s: float = setting(
        "connectionTimeout", values.seconds(), "How long a request may wait for a free instance.", default=30.0
    )
    hold_when_none_s: float | None = setting(
        "holdWhenNone",
        values.seconds(zero=True),
        "How long a request may wait for an agent whose first instance is starting, and if set also for an agent whose "
        "instances have all failed; 0: not at all. Default: connectionTimeout.",
        default=None,
    )
    request_timeout_s: float = setting(
        "requestTimeout", values.seconds(), "Time limit for the complete response, or for a stream's first byte.", default=60.0
    )


@dataclass(frozen=True, slots=True)
class Timeouts:
    connection_s: float = setting(
        "connection", values.seconds(), "Time limit for a TCP connection to an instance to open.", default=10.0
    )
    request_s: float = setting(
        "request", values.seconds(), "Same as limits.requestTimeout; the smaller one applies.", default=60.0
    )
    idle_s: float = setting(
        "idle", values.seconds(), "Longest time without data on a stream, a WebSocket or an idle connection.", default=300.0
    )


@dataclass(frozen=True, slots=True)
class RateLimit:
    enabled: bool = setting("enabled", values.flag, "Whether requests to the agent are limited.", default=False)
    requests: int = setting("requests", values.whole(1), "Requests allowed per window; others receive status 429.", default=100)
    window_s: float = setting("window", values.seconds(), "The length of the window.", default=60.0)
    strategy: str = setting(
        "strategy", values.choice("rate limit strategy", *LIMITERS), "How requests are counted.", default="sliding-window"
    )


@dataclass(frozen=True, slots=True)
class AccessLog:
    """Errors (500 and above, and every refusal) are logged whatever `sample` says."""

    enabled: bool = setting("enabled", values.flag, "Whether each request is logged as a line of JSON.", default=False)
    sample_percent: float = setting("sample", PERCENT, "Percent of the requests without errors that are logged.", default=100.0)
    errors_only: bool = setting("errorsOnly", values.flag, "Whether only errors and refusals are logged.", default=False)


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    enabled: bool = setting("enabled", values.flag, "Whether failing instances stop receiving requests.", default=True)
    failure_threshold: int = setting(
        "failureThreshold", values.whole(1), "Consecutive failures that open the circuit breaker.", default=5
    )
    timeout_s: float | None = setting(
        "timeout",
        values.seconds(),
        "A request without a response for this long counts as failed. Default: the request timeout.",
        default=None,
    )
    reset_timeout_s: float = setting(
        "resetTimeout", values.seconds(), "How long the circuit breaker stays open before the first probe.", default=60.0
    )


@dataclass(frozen=True, slots=True)
class Retry:
    attempts: int = setting("attempts", values.whole(0), "Maximum number of retries per request.", default=2)
    budget_percent: float = setting("budget", PERCENT, "Percent of the active requests that may be retries.", default=20.0)


@dataclass(frozen=True, slots=True)
class Scaling:
    """Bounds hold per region. Neither target given: both, 70 and 80."""

    min_instances: int = setting("minInstances", values.whole(0), "Minimum number of instances per region.", default=2)
    max_instances: int = setting("maxInstances", values.whole(1), "Maximum number of instances per region.", default=10)
    target_cpu: float | None = setting(
        "targetCPU",
        PERCENT_ABOVE_0,
        "Target CPU usage per instance, in percent of one core. Default if no target is set: 70.",
        default=None,
    )
    target_connections: float | None = setting(
        "targetConnections",
        values.number(above=True),
        "Target number of requests in flight per instance. Default if no target is set: 80.",
        default=None,
    )
    downscale_delay_s: float = setting(
        "downscaleDelay",
        values.seconds(zero=True),
        "How long the load must stay low before instances are stopped.",
        default=300.0,
    )


STEPS = each(PERCENT_ABOVE_0, "percentages")


@reads(STEPS.schema | {"minItems": 1, "uniqueItems": True})
def read_steps(value: object, at: Location) -> tuple[float, ...]:
    steps: tuple[float, ...] = STEPS(value, at)
    if at.clean() and (not steps or sorted(set(steps)) != list(steps)):
        raise ConfigError(f"{shown(value)} is not a list of percentages in ascending order (for example 10, 25, 50, 100)")
    return steps


@dataclass(frozen=True, slots=True)
class CanarySettings:
    """When a canary is promoted automatically. Error rate in percent, latency as a multiple of the stable version's."""

    max_error_rate: float = setting(
        "maxErrorRate", PERCENT, "Error rate in percent above which the canary is rolled back.", default=5.0
    )
    max_latency_ratio: float = setting(
        "maxLatencyRatio",
        values.number(above=True),
        "Latency above which the canary is rolled back, as a multiple of the stable version's.",
        default=1.5,
    )
    min_requests: int = setting(
        "minRequests", values.whole(1), "Requests that each version must answer before a step is judged.", default=50
    )
    interval_s: float = setting("interval", values.seconds(), "Minimum time between two steps.", default=30.0)
    steps: tuple[float, ...] = setting(
        "steps", read_steps, "Percent of the traffic at each step, in ascending order.", default=(10.0, 25.0, 50.0, 100.0)
    )


@dataclass(frozen=True, slots=True)
class _RuntimeEnv:
    pip: tuple[str, ...] = setting("pip", each(values.requirement, "requirements"), "Packages to install with pip.", default=())
    env_vars: dict[str, str] = setting(
        "env",
        named("environment variable", values.variable, values.variable_name),
        "Environment variables to set.",
        factory=dict,
    )


RUNTIME_ENV = block(_RuntimeEnv)


@reads(RUNTIME_ENV.schema)
def read_runtime_env(value: object, at: Location) -> dict[str, object]:
    """In Ray's words, to be passed on as it is."""
    env = RUNTIME_ENV(value, at)
    in_rays_words: dict[str, object] = {"pip": list(env.pip), "env_vars": env.env_vars}
    return {name: item for name, item in in_rays_words.items() if item}


def _write_runtime_env(env: Mapping[str, object]) -> dict[str, object]:
    return {"env" if name == "env_vars" else name: item for name, item in env.items()}


@dataclass(frozen=True, slots=True)
class AgentSettings:
    name: str
    agent: str = setting("agent", values.import_name, "module:attribute of the Agent, imported from this file's folder.")
    version: str = setting("version", values.version, "Name of the version that this file describes.", default="v1")
    resources: Resources = setting("resources", block(Resources), "What Ray reserves for each instance.", factory=Resources)
    regions: dict[str, RegionSettings] = setting(
        "regions",
        read_regions,
        "Where the agent runs: a list of regions, or a block for each. Default: one region, local.",
        factory=lambda: {"local": RegionSettings(1)},
        later=True,
    )
    load_balancing: LoadBalancing = setting(
        "loadBalancing",
        block(LoadBalancing, also={"healthCheck": HEALTH_CHECK}),
        "How requests are distributed among the instances.",
        factory=LoadBalancing,
    )
    health_check: HealthCheck = setting(
        "healthCheck", HEALTH_CHECK, "Active health checks; an unhealthy instance receives no requests.", factory=HealthCheck
    )
    limits: Limits = setting(
        "limits", block(Limits), "Limits on concurrent requests, and on how long they may wait and run.", factory=Limits
    )
    timeouts: Timeouts = setting("timeouts", block(Timeouts), "Time limits for the parts of a request.", factory=Timeouts)
    rate_limit: RateLimit = setting("rateLimit", block(RateLimit), "Rate limit for the whole agent.", factory=RateLimit)
    circuit_breaker: CircuitBreaker = setting(
        "circuitBreaker", block(CircuitBreaker), "Stops sending requests to an instance that fails.", factory=CircuitBreaker
    )
    retry: Retry = setting("retry", block(Retry), "When a failed request is sent to another instance.", factory=Retry)
    scaling: Scaling | None = setting(
        "scaling", block(Scaling), "Autoscaling per region. Default: a fixed number of instances.", default=None
    )
    canary: CanarySettings | None = setting(
        "canary",
        block(CanarySettings),
        "Promotes or rolls back a canary automatically. Default: an operator decides.",
        default=None,
    )
    access_log: AccessLog = setting("accessLog", block(AccessLog), "One line of JSON per request.", factory=AccessLog)
    drain_timeout_s: float = setting(
        "drainTimeout", values.seconds(zero=True), "Time limit for a draining instance to finish its requests.", default=600.0
    )
    runtime_env: dict[str, object] = setting(
        "runtimeEnv",
        read_runtime_env,
        "Packages and environment variables of the instances.",
        factory=dict,
        write=_write_runtime_env,
    )
    written: frozenset[str] = field(default=frozenset(), compare=False, repr=False)  # paths within this block

    @property
    def request_timeout_s(self) -> float:
        return min(self.limits.request_timeout_s, self.timeouts.request_s)

    def to_block(self) -> dict[str, object]:
        """This agent's block of cluster.yaml: what was written, and what differs from the defaults."""
        return write_block(self, self.written)
