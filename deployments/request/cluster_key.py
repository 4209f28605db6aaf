"""Is a request from inside the cluster? Gateways, instances and the Controller send the cluster's key with each one."""

from __future__ import annotations

import hmac

from cluster.messages import KEY_HEADER
from deployments.types import Headers


def carries_key(headers: Headers, key: bytes) -> bool:
    return any(name == KEY_HEADER and hmac.compare_digest(value, key) for name, value in headers)
