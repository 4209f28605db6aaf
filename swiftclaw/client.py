"""Calls to an agent from Python code inside the Ray cluster: `connect("my-agent")`, then `ask` or `stream`.

They go through a gateway (by its Serve handle), so routing, limits and retries apply as for HTTP requests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve

GATEWAY_APPS = "gateway."


class AgentError(Exception):
    """The request was refused or failed. `type`, `status`, `agent` and `request_id` are those of the HTTP error response."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(error.get("message", "the request failed"))
        self.status = status
        self.type: str = error.get("type", "internal_error")
        self.agent: str | None = error.get("agent")
        self.request_id: str | None = error.get("request_id")


class NotRunning(Exception):
    """There is no Ray cluster, or no gateway runs in it."""


class AgentHandle:
    """A handle to one agent; `connect` makes it."""

    def __init__(self, agent: str, gateway: Any) -> None:
        self._agent = agent
        self._gateway = gateway
        self._streaming = gateway.options(stream=True)

    async def ask(
        self,
        message: object,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """The agent's reply: what its handler returned; the whole text if the handler streams. Raises AgentError.

        `message`: anything that JSON can express. `headers`: sent as HTTP headers.
        """
        body = _body(message, session_id, user_id)
        status, reply = await self._gateway.ask.remote(self._agent, body, headers or {})
        if status != 200:
            raise AgentError(status, reply["error"])
        return reply["reply"]

    async def stream(
        self,
        message: object,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[str]:
        """The reply as text, piece by piece. Raises AgentError, also when the stream ends early."""
        body = _body(message, session_id, user_id)
        async for kind, content in self._streaming.stream.remote(self._agent, body, headers or {}):
            if kind == "error":
                raise AgentError(content.get("status", 502), content["error"])
            yield content


def connect(agent: str, *, region: str | None = None) -> AgentHandle:
    """A handle to `agent` through a gateway in `region` (default: any region). Joins the running Ray cluster if necessary.

    Raises NotRunning. The name is not checked here: the first call to an unknown agent raises AgentError `unknown_agent`.
    """
    if not ray.is_initialized():
        try:
            ray.init(address="auto", log_to_driver=False, logging_level="warning")
        except ConnectionError as error:
            raise NotRunning("no Ray cluster is running on this machine; start one with `swiftclaw up`") from error
    prefix = f"{GATEWAY_APPS}{region}" if region else GATEWAY_APPS
    gateways = sorted(name for name in serve.status().applications if name.startswith(prefix))
    if not gateways:
        where = f" in region {region}" if region else ""
        raise NotRunning(f"no gateway is running in this Ray cluster{where}; `swiftclaw status` shows the running gateways")
    return AgentHandle(agent, serve.get_deployment_handle("Gateway", gateways[0]))


def _body(message: object, session_id: str | None, user_id: str | None) -> dict[str, Any]:
    body = {"message": message, "session_id": session_id, "user_id": user_id}
    return {name: value for name, value in body.items() if name == "message" or value is not None}
