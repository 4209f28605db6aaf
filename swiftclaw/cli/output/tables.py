"""The admin port's replies as tables that fit 80 columns."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.instance_state import CRASH_LOOP, DRAINING, EJECTED, HEALTHY, STARTING, STOPPED, UNHEALTHY

STYLES = {
    HEALTHY: "green", STARTING: "cyan", DRAINING: "yellow", UNHEALTHY: "red", EJECTED: "red", STOPPED: "dim",
    CRASH_LOOP: "red",
    "closed": "green", "half-open": "yellow", "open": "red",
}  # fmt: skip
Instance = Mapping[str, Any]


def instances(rows: Iterable[Instance]) -> RenderableType:
    table = headed("INSTANCE", "REGION", "VERSION", "STATE", "CONN>", "REQUESTS>", "ERR %>", "P95 ms>", "UP>")
    for row in rows:
        table.add_row(
            Text(row["id"]), Text(row["region"]), Text(row["version"]), _state(row["state"]), number(row["connections"]),
            number(row["requests"]), number(row["error_rate"]), number(row["p95_ms"]),
            "-" if row["uptime_s"] is None else ago(row["uptime_s"]),
        )  # fmt: skip
    return table if table.row_count else Text("no instances")


def health(rows: Iterable[Instance]) -> RenderableType:
    """The last health check of each instance, its reason, and the circuit breaker."""
    table = headed("INSTANCE", "REGION", "STATE", "CIRCUIT", "CHECKED>", "REASON")
    now = time.time()
    for row in rows:
        checked = row["health"]["checked_at"]
        table.add_row(
            Text(row["id"]), Text(row["region"]), _state(row["state"]), _state(row["circuit"] or "-"),
            f"{ago(max(0.0, now - checked))} ago" if checked else "never", Text(row["health"]["reason"] or ""),
        )  # fmt: skip
    return table if table.row_count else Text("no instances")


def status(reply: Mapping[str, Any]) -> RenderableType:
    """Agents, versions, regions and gateways; then problems, warnings and changed instance counts."""
    failed = _failed(reply)
    parts: list[RenderableType] = [_agents(reply["agents"]), Text(), _gateways(reply)]
    parts += [
        Text(f"{app} cannot start: {reason}", style="red") for app, reason in reply["problems"].items() if app not in failed
    ]
    parts += [Text(f"{app}: {reason}", style="red") for app, reason in failed.items()]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in reply["warnings"]]
    parts += [Text(line, style="dim") for line in (*_scaled(reply["agents"]), *_bounds(reply["agents"]))]
    return Group(*parts)


def versions(agent: Mapping[str, Any]) -> RenderableType:
    """One agent's versions side by side, with figures of the last minute, and the state of the rollout."""
    table = headed("VERSION", "ROLE", "TRAFFIC>", "HEALTHY>", "REQUESTS>", "ERR %>", "P50 ms>", "P95 ms>")
    for one in agent["versions"]:
        table.add_row(
            Text(one["version"]), Text(one["role"]), f"{one['weight']:g} %", f"{one['healthy']} of {one['desired']}",
            number(one["requests"]), number(one["error_rate"]), number(one["p50_ms"]), number(one["p95_ms"]),
        )  # fmt: skip
    rollout, lines = agent["rollout"], []
    if rollout["canary"] and rollout["percent"] != rollout["target"]:
        lines.append(f"{rollout['canary']} will receive {rollout['target']:g} % once enough of its instances are healthy")
    if rollout["paused"]:
        lines.append(f"the canary analysis of {rollout['canary']} is paused")
    lines += [f"{rollout['canary']} {rollout['note']}"] if rollout["note"] else []
    lines += [f"analysis: {rollout['analysis']}"] if rollout["analysis"] else []
    lines += [rollout["last"]] if rollout["last"] else []
    return Group(table, *(Text(line) for line in lines))


def ago(seconds: float) -> str:
    """A duration in at most four characters: 12s, 3m, 5h, 12d."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def _scaled(agents: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Each region whose instance count differs from the file's: since when, and why."""
    for agent in agents:
        for region, counts in agent["regions"].items():
            if counts.get("reason"):
                age = ago(max(0.0, time.time() - counts["at"]))
                yield f"{agent['name']} in {region}: {counts['desired']} instances for {age} ({counts['reason']})"


def _bounds(agents: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Scaling bounds hold per region: what they add up to, for each agent in several regions."""
    for agent in agents:
        found = [region.get("bounds") for region in agent["regions"].values()]
        if len(found) > 1 and all(found):
            least, most = sum(low for low, _ in found), sum(high for _, high in found)
            total = f"between {least} and {most} instances over {len(found)} regions"
            yield f"{agent['name']}: scales {total} (the bounds hold per region)"


def _agents(agents: Iterable[Mapping[str, Any]]) -> RenderableType:
    table = headed("AGENT", "STRATEGY", "VERSIONS", "REGION", "HEALTHY>", "REQUESTS>", "ERRORS>")
    for agent in agents:
        first = [agent["name"], agent["strategy"], _versions(agent["versions"])]
        totals = [number(agent["requests"]), number(agent["errors"])]
        for region, counts in agent["regions"].items() or [("-", {"instances": 0, "healthy": 0})]:
            full = counts["healthy"] >= counts["instances"]
            share = Text(f"{counts['healthy']} of {counts['instances']}", style="green" if full else "yellow")
            table.add_row(*map(Text, first), Text(region), share, *totals)
            first, totals = ["", "", ""], ["", ""]
    return table if table.row_count else Text("no agents")


def _versions(versions: Iterable[Mapping[str, Any]]) -> str:
    """`v1`, or `v1 90% v2 10%` while a canary runs."""
    listed = list(versions)
    if len(listed) == 1:
        return str(listed[0]["version"])
    return " ".join(f"{one['version']} {one['weight']:g}%" for one in listed)


def _gateways(reply: Mapping[str, Any]) -> RenderableType:
    workers = Counter(one["worker_of"] for one in reply["gateways"] if one.get("worker_of"))
    replicas = [one for one in reply["gateways"] if not one.get("worker_of")]
    table = headed("GATEWAY", "REGION", "REPLICAS>", *(["WORKERS>"] if workers else []), "PIDS")
    edges: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in replicas:
        address = f"{'https://' if one.get('tls') else ''}{one['host']}:{one['port']}"
        edges.setdefault((address, one["region"]), []).append(one)
    for (address, region), there in edges.items():
        of_workers = [str(sum(workers[one["id"]] for one in there))] if workers else []
        pids = " ".join(str(one["pid"]) for one in there)
        table.add_row(Text(address), Text(region), str(len(there)), *of_workers, pids)
    running, desired = len(replicas), reply["desired_gateways"]
    if running >= desired:
        return table
    missing = Text(f"{running} of {desired} gateways are running", style="yellow")
    return Group(table, missing) if table.row_count else missing


def _failed(reply: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: f"{app['status'].lower().replace('_', ' ')}: {first_line(reply['problems'].get(name) or app['message'])}"
        for name, app in reply["apps"].items()
        if app["status"] in ("DEPLOY_FAILED", "UNHEALTHY")
    }


def first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else "no reason given"


def headed(*headings: str) -> Table:
    """An empty table. A heading that ends in `>` is for a right-aligned column of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in headings:
        right = heading.endswith(">")
        table.add_column(heading.rstrip(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    return table


def _state(word: str) -> Text:
    return Text(word, style=STYLES.get(word, ""))


def number(value: float | None) -> str:
    """A whole number without decimals, others with one; `-` for None."""
    if value is None:
        return "-"
    if isinstance(value, int) or float(value).is_integer():
        return str(int(value))
    return f"{value:.1f}"


def bar(value: float, largest: float, width: int, style: str) -> RenderableType:
    """A bar of `width` characters for `largest`, exact to an eighth of a character; at least that for a value above 0."""
    if value <= 0 or largest <= 0:
        return Text()
    return Bar(8 * width, 0, max(1, round(8 * width * value / largest)), width=width, color=style)
