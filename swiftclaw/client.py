"""Calling an agent from Python inside the Ray cluster: `connect("my-agent")`, then `ask` or `stream`.

Goes through a gateway (over Serve's handle), so that every rule applies as it does to a request from outside.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve

GATEWAY_APPS = "gateway."


class AgentError(Exception):
    """The request was refused or failed. `type` and `status` are those of the HTTP answer."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(error.get("message", "the request failed"))
        self.status = status
        self.type: str = error.get("type", "internal_error")
        self.agent: str | None = error.get("agent")
        self.request_id: str | None = error.get("request_id")


class NotRunning(Exception):
    """No gateway runs in this Ray cluster, or there is no Ray cluster."""


class AgentHandle:
    """One agent, as Python code calls it."""

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
        """The agent's reply: what its handler returned. Raises AgentError."""
        body = _body(message, session_id, user_id)
        status, answer = await self._gateway.ask.remote(self._agent, body, headers or {})
        if status != 200:
            raise AgentError(status, answer["error"])
        return answer["reply"]

    async def stream(
        self,
        message: object,
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[str]:
        """The reply piece by piece. Raises AgentError, also when it breaks off."""
        body = _body(message, session_id, user_id)
        async for kind, content in self._streaming.stream.remote(self._agent, body, headers or {}):
            if kind == "error":
                raise AgentError(content.get("status", 502), content["error"])
            yield content


def connect(agent: str, *, region: str | None = None) -> AgentHandle:
    """A handle to `agent`, through a gateway of `region` (default: any). Joins the running Ray cluster if need be.

    Raises NotRunning. An unknown agent shows with the first question, as AgentError of type `unknown_agent`.
    """
    if not ray.is_initialized():
        try:
            ray.init(address="auto", log_to_driver=False, logging_level="warning")
        except ConnectionError as error:
            raise NotRunning("no Ray cluster runs here; start one with `swiftclaw up`") from error
    wanted = f"{GATEWAY_APPS}{region}" if region else GATEWAY_APPS
    gateways = sorted(name for name in serve.status().applications if name.startswith(wanted))
    if not gateways:
        raise NotRunning(f"no gateway runs in this Ray cluster{f' in region {region}' if region else ''}")
    return AgentHandle(agent, serve.get_deployment_handle("Gateway", gateways[0]))


def _body(message: object, session_id: str | None, user_id: str | None) -> dict[str, Any]:
    body = {"message": message, "session_id": session_id, "user_id": user_id}
    return {name: value for name, value in body.items() if name == "message" or value is not None}
