"""A headless Chromium, driven by the DevTools protocol over one WebSocket: for tests of the dashboard."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run")


class Tab:
    """One page. `errors` and `urls` collect what its console complained of and what it asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        self._socket = socket
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._asked = 0
        self.errors: list[str] = []
        self.urls: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
                continue
            params = said["params"]
            if said["method"] == "Runtime.exceptionThrown":
                self.errors.append(params["exceptionDetails"].get("exception", {}).get("description", "an exception"))
            elif said["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                self.errors.append(" ".join(str(one.get("value", one.get("description"))) for one in params["args"]))
            elif said["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            elif said["method"] == "Network.requestWillBeSent":
                self.urls.append(params["request"]["url"])

    async def call(self, method: str, **params: Any) -> Any:
        self._asked += 1
        number = self._asked
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        answer = await asyncio.wait_for(future, 30)
        assert "error" not in answer, answer
        return answer["result"]

    async def evaluate(self, script: str) -> Any:
        """The value of an expression, awaited."""
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def open(self, url: str, *, width: int = 1280, height: int = 900, theme: str = "light") -> None:
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def until(self, script: str, seconds: float = 30) -> Any:
        """The expression's first value that is true."""
        deadline, found = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            found = await self.evaluate(script)
            if found:
                return found
            await asyncio.sleep(0.1)
        raise AssertionError(
            f"not within {seconds:g} s: {script}; the page says: {await self.evaluate('document.body.innerText')}"
        )

    async def screenshot(self, *, whole: bool = False) -> bytes:
        """A PNG."""
        answer = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])

    async def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)


@asynccontextmanager
async def browser() -> AsyncIterator[Tab]:
    """A new browser with nothing remembered, ended afterwards."""
    assert CHROMIUM, "there is no chromium"
    with tempfile.TemporaryDirectory(prefix="sc-browser-", ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            CHROMIUM, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank",
            stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, env={"HOME": folder, "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        try:
            async with aiohttp.ClientSession() as client:
                port = await asyncio.wait_for(_port(process), 60)
                async with client.get(f"http://127.0.0.1:{port}/json") as answer:
                    (target, *_) = [one for one in await answer.json() if one["type"] == "page"]
                async with client.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    tab = Tab(socket)
                    for domain in ("Page", "Runtime", "Log", "Network"):
                        await tab.call(f"{domain}.enable")
                    yield tab
        finally:
            process.terminate()
            await process.wait()


async def _port(process: asyncio.subprocess.Process) -> int:
    assert process.stderr is not None
    async for line in process.stderr:
        if found := re.search(rb"DevTools listening on ws://[^:]+:(\d+)/", line):
            return int(found[1])
    raise AssertionError("the browser ended before it was ready")
