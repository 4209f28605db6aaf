"""`model="echo"`: replies with the message. Needs no key and no network; for examples, tests and benchmarks."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import Any

from deployments.request.openai import chat_messages, content_text


class Echo:
    """Replies with the message itself (the last of chat messages), and streams it word by word. Ignores options."""

    def __init__(self, name: str = "", **settings: Any) -> None:
        if name:
            raise ValueError(f"model: 'echo' has no variants; write 'echo', not 'echo:{name}'")

    async def generate(self, message: object, **options: Any) -> str:
        return content_text(chat_messages(message)[-1].get("content"))

    async def stream(self, message: object, **options: Any) -> AsyncGenerator[str, None]:
        for word in re.findall(r"\s*\S+\s*|\s+", await self.generate(message)):
            yield word

    async def close(self) -> None:
        pass
