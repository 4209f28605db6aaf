"""Does a client prefer server-sent events to JSON? Its Accept header, by media range and q-value.

Source: RFC 9110, section 12.5.1.
"""

from __future__ import annotations

from deployments.types import Headers

_EVENTS = ("text/event-stream", "text/*", "*/*")  # the most specific range that matches decides
_JSON = ("application/json", "application/*", "*/*")


def prefers_events(headers: Headers) -> bool:
    """Between equals, the one that is named beats a wildcard, and JSON beats events; without Accept it is JSON."""
    values = [value for name, value in headers if name == b"accept"]
    if not values or values == [b"*/*"]:
        return False
    ranges = _ranges(b",".join(values).decode("latin-1"))
    events = _preference(ranges, _EVENTS)
    return events[0] > 0 and events > _preference(ranges, _JSON)


def _ranges(value: str) -> dict[str, float]:
    """q by media range. Parameters other than q are ignored; a q that is no number from 0 to 1 counts as 0."""
    found: dict[str, float] = {}
    for item in value.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        q = next((p.partition("=")[2].strip() for p in parameters if p.partition("=")[0].strip() == "q"), "1")
        if name:
            found[name] = max(found.get(name, 0.0), _quality(q))
    return found


def _quality(text: str) -> float:
    try:
        q = float(text)
    except ValueError:
        return 0.0
    return q if 0 <= q <= 1 else 0.0


def _preference(ranges: dict[str, float], matching: tuple[str, ...]) -> tuple[float, bool]:
    """(q, whether the type itself is named)."""
    best = next((name for name in matching if name in ranges), None)
    return (0.0, False) if best is None else (ranges[best], best == matching[0])
