"""What is left of a cluster after `swiftclaw down`: processes, files, and what its logs say."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from pathlib import Path

from tests.campaign.cluster import Cluster

ENDING_S = 20.0  # in which processes may still end
LOGS = re.compile(r"(replica_|controller|worker|deploy|gateway|access|proxy)")
_SUFFIX = re.compile(r"[-_][0-9a-z]{8}\.log$|-?[0-9a-f]{56}.*|_[0-9]+\.")


def orphans(cluster: Cluster) -> list[str]:
    """Processes that outlive the cluster; they are killed."""
    ends = time.monotonic() + ENDING_S
    while cluster.processes() and time.monotonic() < ends:
        time.sleep(0.5)
    return cluster.end_all()


def files_left(folder: Path, session: str, shared: Path = Path("/dev/shm")) -> list[str]:
    """Ray's temporary folders, and the counts of that session's gateways in shared memory."""
    counts = shared.glob(f"swiftclaw-{os.getuid()}-counts/{session}/*") if session else ()
    return [str(one) for one in (*folder.glob("swiftclaw-*"), *counts)]


def tracebacks(logs: Path) -> dict[str, int]:
    """ "log: last line" -> how often, numbers and identities left out."""
    totals: Counter[str] = Counter()
    for file in [*logs.rglob("*.log"), *logs.rglob("worker-*.err")]:
        if LOGS.match(name := _SUFFIX.sub("", file.name)):
            for block in file.read_text("utf-8", "replace").split("Traceback (most recent call last):")[1:]:
                totals[f"{name}: {_last_line(block)}"] += 1
    return dict(totals.most_common())


def _last_line(block: str) -> str:
    """The first line of a traceback that is not part of its stack: the exception."""
    line = next((line for line in block.splitlines()[1:] if line and not line.startswith((" ", "\t", "|", "+"))), "?")
    return re.sub(r"\b[0-9a-f]{8,}\b|\d+", "#", line)[:200]
