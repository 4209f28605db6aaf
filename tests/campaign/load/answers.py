"""Whether what arrived is the answer to this very request, an error with a name, or neither."""

from __future__ import annotations

import json
import re

from tests.campaign.load.http import Answer, Broken
from tests.campaign.record import Request

PIECES = 10  # of a stream
_PIECE = re.compile(r"(\d+):([^|;]+)\|(\d+)\|([^|;]+)\|\d+;")


def classify(request: Request, answer: Answer) -> None:
    """Put the outcome, and which process answered, into the request. Raises Broken if a stream ended without its end."""
    if answer.status >= 400:
        read_error(request, answer.text)
        return
    try:
        if request.kind == "stream":
            _read_stream(request, answer.text)
        elif request.kind.startswith("app-"):
            _read_item(request, answer.text)
        else:
            _read_reply(request, answer.text)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        request.outcome, request.message = "wrong", f"{error!r}: {answer.text[:200]}"
    if request.outcome == "wrong":
        request.message = request.message or answer.text[:200]


def read_headers(request: Request, answer: Answer) -> None:
    headers = answer.headers
    request.status, request.first_byte = answer.status, round(answer.first_byte, 4)
    request.instance = headers.get("x-swiftclaw-instance", "")
    request.attempts = int(headers.get("x-swiftclaw-attempts", 1))
    request.moved = "x-swiftclaw-session-moved" in headers


def read_error(request: Request, text: str) -> None:
    """An error is named if it is JSON with a type (or, on the OpenAI path, a code) and a message."""
    try:
        error = json.loads(text)["error"]
        request.error, request.message = str(error["type"] or error["code"]), str(error["message"])
        request.outcome = "error"
    except (ValueError, KeyError, TypeError):
        request.outcome, request.message = "unnamed", text[:200]


def _read_reply(request: Request, text: str) -> None:
    content = json.loads(text)
    reply = content["choices"][0]["message"]["content"] if request.kind == "chat" else content["reply"]
    name, pid, request.code, count = reply.split("|")
    request.pid, request.count = int(pid), int(count)
    request.outcome = "ok" if name == request.id else "wrong"


def _read_item(request: Request, text: str) -> None:
    item = json.loads(text)
    request.pid, request.code = item["pid"], item["code"]
    same = item["id"] == request.id and item["method"] == request.method and item["body"] in ("", request.id)
    request.outcome = "ok" if same else "wrong"


def _read_stream(request: Request, text: str) -> None:
    events = [event for event in text.split("\n\n") if event]
    deltas = [json.loads(event[6:])["delta"] for event in events if event.startswith('data: {"delta')]
    pieces = _PIECE.findall("".join(deltas))
    request.pieces = len(pieces)
    if pieces:
        request.pid, request.code = int(pieces[0][2]), pieces[0][3]
    if any((int(number), name) != (position, request.id) for position, (number, name, _, _) in enumerate(pieces)):
        request.outcome, request.message = "wrong", text[:300]
    elif events and events[-1].startswith("event: error"):
        read_error(request, events[-1].split("data: ", 1)[1])
        request.midway = True
    elif len(pieces) == PIECES and events[-1] == "data: [DONE]":
        request.outcome = "ok"
    else:
        raise Broken(f"the stream ended without an event that says so, after {len(pieces)} pieces")
