"""cluster.yaml as frozen settings: `load` reads the file, `parse` the args that Ray Serve passes on from it."""

from cluster.config.agent_settings import (
    AccessLog,
    AgentSettings,
    CanarySettings,
    CircuitBreaker,
    HealthCheck,
    LearnedSession,
    Limits,
    LoadBalancing,
    RateLimit,
    RegionSettings,
    Resources,
    Retry,
    Scaling,
    SessionAffinity,
    Timeouts,
)
from cluster.config.cors_settings import CorsSettings
from cluster.config.mistakes import ConfigError
from cluster.config.settings import (
    AdminSettings,
    GatewaySettings,
    HttpSettings,
    Settings,
    TlsSettings,
    agent_from_block,
    load,
    parse,
)
from cluster.config.values import duration

__all__ = [
    "AccessLog",
    "AdminSettings",
    "AgentSettings",
    "CanarySettings",
    "CircuitBreaker",
    "ConfigError",
    "CorsSettings",
    "GatewaySettings",
    "HealthCheck",
    "HttpSettings",
    "LearnedSession",
    "Limits",
    "LoadBalancing",
    "RateLimit",
    "RegionSettings",
    "Resources",
    "Retry",
    "Scaling",
    "SessionAffinity",
    "Settings",
    "Timeouts",
    "TlsSettings",
    "agent_from_block",
    "duration",
    "load",
    "parse",
]
