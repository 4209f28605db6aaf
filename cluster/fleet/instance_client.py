"""How the Controller calls an instance: HTTP with the cluster's key, one session for all callers.

Each call opens its own connection: the answer shows whether the instance accepts connections now. Not for users'
requests, which are the gateways' (deployments/upstream/).
"""

from __future__ import annotations

import aiohttp

from cluster.messages import KEY_HEADER, Registration
from cluster.transport.listener import in_url


class InstanceClient:
    """`request` needs a running event loop; the session is opened by the first one."""

    def __init__(self, key: str) -> None:
        self._headers = {KEY_HEADER.decode(): key}
        self._session: aiohttp.ClientSession | None = None

    def request(
        self, method: str, to: Registration, path: str, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.client._RequestContextManager:
        """To be used with `async with`. Raises what aiohttp raises."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self._session.request(method, f"http://{in_url(to.host)}:{to.port}{path}", timeout=timeout)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
