"""What can be set for an agent? One frozen dataclass per block: names, units, defaults and allowed values.

A field's line here is all there is to a setting. `cluster.agent_block` makes them from a file, `cluster.config` has the
settings that are not an agent's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.config import values
from cluster.config.fields import ConfigError, Location, block, each, named, read_block, setting, shown, write_block
from policies import STRATEGIES


@dataclass(frozen=True, slots=True)
class Resources:
    """Of one instance, in Ray's units."""

    cpus: float = field(default=0.1, metadata=setting("cpus", values.number()))
    gpus: float = field(default=0.0, metadata=setting("gpus", values.number()))


@dataclass(frozen=True, slots=True)
class RegionSettings:
    # Where it starts; default: the region's minInstances, else scaling's, else 1.
    instances: int = field(metadata=setting("instances", values.whole(0), later=True))
    priority: int = field(default=1, metadata=setting("priority", values.whole(0)))
    min_instances: int | None = field(default=None, metadata=setting("minInstances", values.whole(0)))
    max_instances: int | None = field(default=None, metadata=setting("maxInstances", values.whole(0)))


def read_regions(value: object, at: Location) -> dict[str, RegionSettings]:
    """A mapping from regions to their blocks, or just a list of their names."""
    if not isinstance(value, list | tuple):
        found: dict[str, RegionSettings] = named("region", block(RegionSettings))(value, at)
        return found
    names = each(values.region, "regions")(value, at)
    if len(set(names)) < len(names):
        raise ConfigError(f"{shown(list(names))} names a region twice")
    return {name: read_block(RegionSettings, None, at.step(name)) for name in names}


def read_weights(value: object, at: Location) -> dict[str, float]:
    found: dict[str, float] = named("instance", values.number(kind="weight"), values.instance_name)(value, at)
    if found and at.clean() and not any(found.values()):
        raise ConfigError("all weights are 0, so nothing would get a request")
    return found


@dataclass(frozen=True, slots=True)
class SessionAffinity:
    # None: the file does not say, so the Agent's own word holds.
    enabled: bool | None = field(default=None, metadata=setting("enabled", values.flag))
    type: str = field(
        default="cookie",
        metadata=setting("type", values.choice("type of session affinity", "cookie", "header", "client-ip")),
    )
    ttl_s: float = field(default=3600.0, metadata=setting("ttl", values.seconds()))


@dataclass(frozen=True, slots=True)
class LoadBalancing:
    strategy: str = field(default="round-robin", metadata=setting("strategy", values.choice("strategy", *STRATEGIES)))
    window_s: float = field(default=300.0, metadata=setting("window", values.seconds()))
    regions: tuple[str, ...] = field(default=(), metadata=setting("regions", each(values.region, "regions")))  # (): all
    weighted: dict[str, float] = field(default_factory=dict, metadata=setting("weighted", read_weights))
    session_affinity: SessionAffinity = field(
        default_factory=SessionAffinity, metadata=setting("sessionAffinity", block(SessionAffinity))
    )
    slow_start_s: float = field(default=0.0, metadata=setting("slowStart", values.seconds(zero=True)))


@dataclass(frozen=True, slots=True)
class HealthCheck:
    enabled: bool = field(default=True, metadata=setting("enabled", values.flag))
    interval_s: float = field(default=30.0, metadata=setting("interval", values.seconds()))
    timeout_s: float = field(default=5.0, metadata=setting("timeout", values.seconds()))
    unhealthy_threshold: int = field(default=3, metadata=setting("unhealthyThreshold", values.whole(1)))
    healthy_threshold: int = field(default=2, metadata=setting("healthyThreshold", values.whole(1)))


@dataclass(frozen=True, slots=True)
class Limits:
    max_connections: int = field(default=1000, metadata=setting("maxConnections", values.whole(1)))
    max_connections_per_instance: int = field(default=100, metadata=setting("maxConnectionsPerInstance", values.whole(1)))
    connection_timeout_s: float = field(default=30.0, metadata=setting("connectionTimeout", values.seconds()))
    request_timeout_s: float = field(default=60.0, metadata=setting("requestTimeout", values.seconds()))


@dataclass(frozen=True, slots=True)
class Timeouts:
    connection_s: float = field(default=10.0, metadata=setting("connection", values.seconds()))
    request_s: float = field(default=60.0, metadata=setting("request", values.seconds()))
    idle_s: float = field(default=300.0, metadata=setting("idle", values.seconds()))


@dataclass(frozen=True, slots=True)
class RateLimit:
    enabled: bool = field(default=False, metadata=setting("enabled", values.flag))
    requests: int = field(default=100, metadata=setting("requests", values.whole(1)))
    window_s: float = field(default=60.0, metadata=setting("window", values.seconds()))
    strategy: str = field(
        default="sliding-window",
        metadata=setting("strategy", values.choice("rate limit strategy", "sliding-window", "fixed-window", "token-bucket")),
    )


@dataclass(frozen=True, slots=True)
class AccessLog:
    """Errors (500 and above, and every refusal) are logged whatever `sample` says."""

    enabled: bool = field(default=False, metadata=setting("enabled", values.flag))
    sample_percent: float = field(default=100.0, metadata=setting("sample", values.number(0, 100, kind="percentage")))
    errors_only: bool = field(default=False, metadata=setting("errorsOnly", values.flag))


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    enabled: bool = field(default=True, metadata=setting("enabled", values.flag))
    failure_threshold: int = field(default=5, metadata=setting("failureThreshold", values.whole(1)))
    timeout_s: float | None = field(default=None, metadata=setting("timeout", values.seconds()))  # None: request timeout
    reset_timeout_s: float = field(default=60.0, metadata=setting("resetTimeout", values.seconds()))


@dataclass(frozen=True, slots=True)
class Retry:
    attempts: int = field(default=2, metadata=setting("attempts", values.whole(0)))
    budget_percent: float = field(default=20.0, metadata=setting("budget", values.number(0, 100, kind="percentage")))


PERCENT_ABOVE_0 = values.number(0, 100, above=True, kind="percentage")


@dataclass(frozen=True, slots=True)
class Scaling:
    """Bounds hold per region. Neither target given: both, 70 and 80."""

    min_instances: int = field(default=2, metadata=setting("minInstances", values.whole(0)))
    max_instances: int = field(default=10, metadata=setting("maxInstances", values.whole(1)))
    target_cpu: float | None = field(default=None, metadata=setting("targetCPU", PERCENT_ABOVE_0))
    target_connections: float | None = field(default=None, metadata=setting("targetConnections", values.number(above=True)))
    downscale_delay_s: float = field(default=300.0, metadata=setting("downscaleDelay", values.seconds(zero=True)))


def read_steps(value: object, at: Location) -> tuple[float, ...]:
    found: tuple[float, ...] = each(PERCENT_ABOVE_0, "percentages")(value, at)
    if at.clean() and (not found or sorted(set(found)) != list(found)):
        raise ConfigError(f"{shown(value)} is not a list of rising percentages (like 10, 25, 50, 100)")
    return found


@dataclass(frozen=True, slots=True)
class CanarySettings:
    """When a canary may grow by itself. Error rate in percent, latency as a multiple of the stable version's."""

    max_error_rate: float = field(default=5.0, metadata=setting("maxErrorRate", values.number(0, 100, kind="percentage")))
    max_latency_ratio: float = field(default=1.5, metadata=setting("maxLatencyRatio", values.number(above=True)))
    min_requests: int = field(default=50, metadata=setting("minRequests", values.whole(1)))
    interval_s: float = field(default=30.0, metadata=setting("interval", values.seconds()))
    steps: tuple[float, ...] = field(default=(10.0, 25.0, 50.0, 100.0), metadata=setting("steps", read_steps))


@dataclass(frozen=True, slots=True)
class _RuntimeEnv:
    pip: tuple[str, ...] = field(default=(), metadata=setting("pip", each(values.requirement, "requirements")))
    env_vars: dict[str, str] = field(
        default_factory=dict,
        metadata=setting("env", named("environment variable", values.variable, values.variable_name)),
    )


def read_runtime_env(value: object, at: Location) -> dict[str, object]:
    """In Ray's words, to be passed on as it is."""
    env = read_block(_RuntimeEnv, value, at)
    said: dict[str, object] = {"pip": list(env.pip), "env_vars": env.env_vars}
    return {name: item for name, item in said.items() if item}


def _write_runtime_env(env: Mapping[str, object]) -> dict[str, object]:
    return {"env" if name == "env_vars" else name: item for name, item in env.items()}


@dataclass(frozen=True, slots=True)
class AgentSettings:
    name: str
    agent: str = field(metadata=setting("agent", values.import_name))  # "module:attribute"
    version: str = field(default="v1", metadata=setting("version", values.version))
    resources: Resources = field(default_factory=Resources, metadata=setting("resources", block(Resources)))
    regions: dict[str, RegionSettings] = field(
        default_factory=lambda: {"local": RegionSettings(1)}, metadata=setting("regions", read_regions, later=True)
    )
    load_balancing: LoadBalancing = field(
        default_factory=LoadBalancing, metadata=setting("loadBalancing", block(LoadBalancing, also=("healthCheck",)))
    )
    health_check: HealthCheck = field(default_factory=HealthCheck, metadata=setting("healthCheck", block(HealthCheck)))
    limits: Limits = field(default_factory=Limits, metadata=setting("limits", block(Limits)))
    timeouts: Timeouts = field(default_factory=Timeouts, metadata=setting("timeouts", block(Timeouts)))
    rate_limit: RateLimit = field(default_factory=RateLimit, metadata=setting("rateLimit", block(RateLimit)))
    circuit_breaker: CircuitBreaker = field(
        default_factory=CircuitBreaker, metadata=setting("circuitBreaker", block(CircuitBreaker))
    )
    retry: Retry = field(default_factory=Retry, metadata=setting("retry", block(Retry)))
    scaling: Scaling | None = field(default=None, metadata=setting("scaling", block(Scaling)))
    canary: CanarySettings | None = field(default=None, metadata=setting("canary", block(CanarySettings)))
    access_log: AccessLog = field(default_factory=AccessLog, metadata=setting("accessLog", block(AccessLog)))
    drain_timeout_s: float = field(default=600.0, metadata=setting("drainTimeout", values.seconds(zero=True)))
    runtime_env: dict[str, object] = field(
        default_factory=dict, metadata=setting("runtimeEnv", read_runtime_env, write=_write_runtime_env)
    )
    written: frozenset[str] = field(default=frozenset(), compare=False, repr=False)  # paths within this block

    @property
    def request_timeout_s(self) -> float:
        return min(self.limits.request_timeout_s, self.timeouts.request_s)

    def to_block(self) -> dict[str, object]:
        """This agent's block of cluster.yaml: what was written, and what differs from the defaults."""
        return write_block(self, self.written)
