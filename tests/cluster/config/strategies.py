"""What cluster.yaml may hold, for Hypothesis: settings that are right, and anything at all."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,10}", fullmatch=True)
COUNTS = st.integers(1, 10_000)
DURATIONS = st.one_of(st.floats(0.001, 1e6), st.integers(1, 10**6), st.sampled_from(["250ms", "1h30m", "5s"]))
WORKERS = st.one_of(st.integers(0, 256), st.just("auto"))
PERCENTAGES = st.floats(0.5, 100)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A block with any of these keys."""
    return st.fixed_dictionaries({}, optional=fields)


AGENT_BLOCKS = st.fixed_dictionaries(
    {"agent": st.sampled_from(["app:agent", "examples.support:agent"])},
    optional={
        "version": st.from_regex(r"[a-z0-9][a-z0-9._-]{0,10}", fullmatch=True),
        "resources": some(cpus=st.floats(0, 64), gpus=st.floats(0, 8)),
        "regions": st.one_of(
            st.lists(NAMES, unique=True, max_size=3),
            st.dictionaries(
                NAMES,
                st.one_of(
                    st.none(),
                    some(instances=COUNTS, priority=COUNTS, minInstances=st.just(3), maxInstances=st.integers(20, 30)),
                ),
                max_size=3,
            ),
        ),
        "loadBalancing": some(
            strategy=st.sampled_from(["round-robin", "least-connections", "response-time", "geographic"]),
            window=DURATIONS,
            weighted=st.dictionaries(st.integers(1, 99).map("instance-{}".format), st.floats(0.1, 100)),
            sessionAffinity=some(enabled=st.booleans(), type=st.sampled_from(["cookie", "header"]), ttl=DURATIONS),
            healthCheck=some(timeout=DURATIONS, healthyThreshold=COUNTS),
            slowStart=DURATIONS,
        ),
        "healthCheck": some(enabled=st.booleans(), interval=DURATIONS, unhealthyThreshold=COUNTS),
        "limits": some(maxConnections=COUNTS, connectionTimeout=DURATIONS, requestTimeout=DURATIONS),
        "timeouts": some(connection=DURATIONS, request=DURATIONS, idle=DURATIONS),
        "rateLimit": some(enabled=st.booleans(), requests=COUNTS, window=DURATIONS, strategy=st.just("token-bucket")),
        "circuitBreaker": some(failureThreshold=COUNTS, timeout=st.none() | DURATIONS, resetTimeout=DURATIONS),
        "retry": some(attempts=COUNTS, budget=PERCENTAGES),
        "scaling": st.none() | some(minInstances=st.integers(1, 5), targetCPU=PERCENTAGES, targetConnections=COUNTS),
        "canary": st.none() | some(maxErrorRate=PERCENTAGES, steps=st.just([5, 50.5]), interval=DURATIONS),
        "drainTimeout": DURATIONS,
        "runtimeEnv": some(pip=st.lists(st.just("httpx")), env=st.just({"A": "b"})),
    },
)
ARGS = some(
    admin=some(port=st.integers(1, 1000)),
    gateways=st.lists(some(port=st.integers(2000, 3000), replicas=COUNTS, workers=WORKERS), min_size=1, max_size=1),
    stateDir=st.sampled_from(["state", "/var/state", "../x"]),
    http=some(
        maxBodyBytes=COUNTS | st.just("3MB"),
        cors=st.none() | st.builds(dict, origins=st.just(["https://*.a.example"]), credentials=st.booleans(), maxAge=DURATIONS),
    ),
    clientRegions=st.dictionaries(st.ip_addresses().map(str), NAMES, max_size=3),
    trustedProxies=st.lists(st.ip_addresses().map(str), max_size=3),
    distances=st.dictionaries(st.just("us"), st.dictionaries(st.sampled_from(["eu", "ap"]), st.floats(0, 9))),
    agents=st.dictionaries(NAMES, AGENT_BLOCKS, max_size=3),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KNOWN_KEYS = st.sampled_from(
    [
        "admin",
        "gateways",
        "http",
        "cors",
        "distances",
        "agents",
        "agent",
        "version",
        "regions",
        "loadBalancing",
        "weighted",
        "healthCheck",
        "limits",
        "rateLimit",
        "retry",
        "scaling",
        "canary",
        "runtimeEnv",
        "config",
        "enabled",
        "port",
    ]
)
