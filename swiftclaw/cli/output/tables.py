"""What the admin port answers, as tables that fit 80 columns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

STYLES = {
    "healthy": "green", "closed": "green", "starting": "cyan", "draining": "yellow", "half-open": "yellow",
    "unhealthy": "red", "ejected": "red", "open": "red", "stopped": "dim",
}  # fmt: skip
Instance = Mapping[str, Any]


def instances(rows: Iterable[Instance]) -> RenderableType:
    table = headed("INSTANCE", "REGION", "VERSION", "STATE", "CONN>", "REQUESTS>", "ERR %>", "P95 ms>", "UP>")
    for row in rows:
        table.add_row(
            Text(row["id"]), Text(row["region"]), Text(row["version"]), _state(row["state"]), number(row["connections"]),
            number(row["requests"]), number(row["error_rate"]), number(row["p95_ms"]), ago(row["uptime_s"]),
        )  # fmt: skip
    return table if table.row_count else Text("no instances")


def health(rows: Iterable[Instance]) -> RenderableType:
    """The last check of each, its reason, and the breaker."""
    table = headed("INSTANCE", "REGION", "STATE", "CIRCUIT", "CHECKED>", "REASON")
    now = time.time()
    for row in rows:
        checked = row["health"]["checked_at"]
        table.add_row(
            Text(row["id"]), Text(row["region"]), _state(row["state"]), _state(row["circuit"] or "-"),
            f"{ago(max(0.0, now - checked))} ago" if checked else "never", Text(row["health"]["reason"] or ""),
        )  # fmt: skip
    return table if table.row_count else Text("no instances")


def status(answer: Mapping[str, Any]) -> RenderableType:
    """Agents, versions, regions, gateways, and what is wrong."""
    parts: list[RenderableType] = [_agents(answer["agents"]), Text(), _gateways(answer)]
    parts += [
        Text(f"{app} cannot start: {reason}", style="red")
        for app, reason in answer["problems"].items()
        if app not in _failed(answer)
    ]
    parts += [Text(f"{app}: {said}", style="red") for app, said in _failed(answer).items()]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in answer["warnings"]]
    parts += [Text(said, style="dim") for said in _scaled(answer["agents"])]
    return Group(*parts)


def versions(agent: Mapping[str, Any]) -> RenderableType:
    """One agent's versions side by side: requests of the last minute, and what is about to happen."""
    table = headed("VERSION", "ROLE", "TRAFFIC>", "HEALTHY>", "REQUESTS>", "ERR %>", "P50 ms>", "P95 ms>")
    for one in agent["versions"]:
        table.add_row(
            Text(one["version"]), Text(one["role"]), f"{one['weight']:g} %", f"{one['healthy']} of {one['desired']}",
            number(one["requests"]), number(one["error_rate"]), number(one["p50_ms"]), number(one["p95_ms"]),
        )  # fmt: skip
    rollout, said = agent["rollout"], []
    if rollout["canary"] and rollout["percent"] != rollout["target"]:
        said.append(f"{rollout['canary']} gets {rollout['target']:g} % when its instances for that are healthy")
    if rollout["paused"]:
        said.append(f"the analysis of {rollout['canary']} pauses")
    said += [f"{rollout['canary']} {rollout['note']}"] if rollout["note"] else []
    said += [f"analysis: {rollout['analysis']}"] if rollout["analysis"] else []
    said += [rollout["last"]] if rollout["last"] else []
    return Group(table, *(Text(line) for line in said))


def ago(seconds: float) -> str:
    """At most four characters: 12s, 3m, 5h, 12d."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def _scaled(agents: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Where the number of instances is not the file's: since when, and why."""
    for agent in agents:
        for region, there in agent["regions"].items():
            if there.get("reason"):
                since = ago(max(0.0, time.time() - there["at"]))
                yield f"{agent['name']} in {region}: {there['desired']} instances since {since}: {there['reason']}"


def _agents(agents: Iterable[Mapping[str, Any]]) -> RenderableType:
    table = headed("AGENT", "STRATEGY", "VERSIONS", "REGION", "HEALTHY>", "REQUESTS>", "ERRORS>")
    for agent in agents:
        first = [agent["name"], agent["strategy"], _versions(agent["versions"])]
        totals = [number(agent["requests"]), number(agent["errors"])]
        for region, there in agent["regions"].items() or [("-", {"instances": 0, "healthy": 0})]:
            full = there["healthy"] >= there["instances"]
            share = Text(f"{there['healthy']} of {there['instances']}", style="green" if full else "yellow")
            table.add_row(*map(Text, first), Text(region), share, *totals)
            first, totals = ["", "", ""], ["", ""]
    return table if table.row_count else Text("no agents")


def _versions(versions: Iterable[Mapping[str, Any]]) -> str:
    """`v1`, or `v1 90% v2 10%` while a canary runs."""
    listed = list(versions)
    if len(listed) == 1:
        return str(listed[0]["version"])
    return " ".join(f"{one['version']} {one['weight']:g}%" for one in listed)


def _gateways(answer: Mapping[str, Any]) -> RenderableType:
    table = headed("GATEWAY", "REGION", "REPLICAS>", "PIDS")
    edges: dict[tuple[str, str], list[str]] = {}
    for one in answer["gateways"]:
        address = f"{'https://' if one.get('tls') else ''}{one['host']}:{one['port']}"
        edges.setdefault((address, one["region"]), []).append(str(one["pid"]))
    for (address, region), pids in edges.items():
        table.add_row(Text(address), Text(region), str(len(pids)), " ".join(pids))
    present, wanted = len(answer["gateways"]), answer["desired_gateways"]
    if present >= wanted:
        return table
    missing = Text(f"{present} of {wanted} gateways are there", style="yellow")
    return Group(table, missing) if table.row_count else missing


def _failed(answer: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: f"{app['status'].lower().replace('_', ' ')}: {first_line(answer['problems'].get(name) or app['message'])}"
        for name, app in answer["apps"].items()
        if app["status"] in ("DEPLOY_FAILED", "UNHEALTHY")
    }


def first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else "no reason given"


def headed(*headings: str) -> Table:
    """A heading that ends in `>` is of a column of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in headings:
        right = heading.endswith(">")
        table.add_column(heading.rstrip(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    return table


def _state(word: str) -> Text:
    return Text(word, style=STYLES.get(word, ""))


def number(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) or float(value).is_integer():
        return str(int(value))
    return f"{value:.1f}"
