"""Does anything grow during a long run? Slopes of memory, file descriptors, threads, tasks and latency, each with its error.

A slope is that of the least-squares line; its error allows for samples that resemble their neighbours, as sizes of memory do,
by their effective number (Bayley and Hammersley, J. R. Stat. Soc. 8, 1946). A leak is a slope beyond two errors that
also adds more than a hundredth of the value in the time that was watched. Pure: numbers in, numbers out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import fmean, median

from tests.campaign.record import Record, Request, Size

WARM_UP_S = 600.0  # of each process: caches, pools and the table of sessions fill
LEAST_S = 600.0  # how long a process must have lived after that
LEAST_SAMPLES = 20
NEGLIGIBLE = 0.01  # of the value, in the time that was watched
MINUTE_S = 60.0


@dataclass(frozen=True)
class Trend:
    """A line through samples. `slope` and `error` are per hour, in the unit of the values."""

    what: str
    unit: str
    watched_s: float
    start: float  # the line's first value
    slope: float
    error: float

    @property
    def grows(self) -> bool:
        """Upwards beyond two errors, by more than a trifle."""
        added = self.slope * self.watched_s / 3600
        return self.slope > 2 * self.error and added > NEGLIGIBLE * max(self.start, 1.0)

    def __str__(self) -> str:
        interval = f"{self.slope:+.4g} ± {2 * self.error:.2g} {self.unit} per hour"
        verdict = " GROWS" if self.grows else ""
        return f"{self.what}: {interval}, from {self.start:.4g}, over {self.watched_s / 60:.0f} min{verdict}"


def line(times: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """(value at the first time, slope per second, its standard error). Raises ValueError below three samples."""
    count = len(times)
    if count < 3:
        raise ValueError(f"{count} samples make no line with an error; three are the least")
    mean_t, mean_v = fmean(times), fmean(values)
    away = [t - mean_t for t in times]
    spread = sum(x * x for x in away)
    if not spread:
        raise ValueError("all samples are of one moment")
    slope = sum(x * (v - mean_v) for x, v in zip(away, values, strict=True)) / spread
    rest = [v - mean_v - slope * x for x, v in zip(away, values, strict=True)]
    variance = sum(r * r for r in rest)
    alike = sum(one * other for one, other in pairwise(rest)) / variance if variance else 0.0
    inflation = (1 + max(0.0, alike)) / max(1 - alike, 1 / count)  # neighbours that are alike count as fewer samples
    error = sqrt(variance / (count - 2) / spread * inflation)
    return mean_v + slope * (times[0] - mean_t), slope, error


def trends(record: Record) -> list[Trend]:
    """Of every process that lived long enough, and of the latency of requests that clients made alone."""
    return [*_sizes(record.sizes), *_latency(record.requests)]


def _sizes(sizes: Iterable[Size]) -> list[Trend]:
    lives: dict[int, list[Size]] = defaultdict(list)
    for size in sizes:
        lives[size.pid].append(size)
    found: list[Trend] = []
    for pid, life in sorted(lives.items(), key=lambda item: (item[1][0].role, item[0])):
        warm = [size for size in life if size.at - life[0].at >= WARM_UP_S]
        if len(warm) < LEAST_SAMPLES or warm[-1].at - warm[0].at < LEAST_S:
            continue
        name = f"{warm[0].role} {pid}"
        found.append(_trend(f"{name}: memory", "MiB", [(size.at, size.rss_kib / 1024) for size in warm]))
        found.append(_trend(f"{name}: file descriptors", "files", [(size.at, size.files) for size in warm]))
        found.append(_trend(f"{name}: threads", "threads", [(size.at, size.threads) for size in warm]))
        busy = [(after.at, _cpu(before, after)) for before, after in pairwise(warm) if after.at > before.at]
        found.append(_trend(f"{name}: CPU", "% of a core", busy))
        if any(size.tasks for size in warm):
            found.append(_trend(f"{name}: tasks", "tasks", [(size.at, size.tasks) for size in warm if size.tasks]))
    return found


def _cpu(before: Size, after: Size) -> float:
    return 100 * (after.cpu_s - before.cpu_s) / (after.at - before.at)


def _latency(requests: Iterable[Request]) -> list[Trend]:
    """The median and the slowest twentieth, minute by minute, of plain requests that were answered."""
    minutes: dict[int, list[float]] = defaultdict(list)
    for request in requests:
        if request.kind == "plain" and request.outcome == "ok":
            minutes[int(request.began // MINUTE_S)].append(1000 * (request.ended - request.began))
    full = [(minute * MINUTE_S, sorted(took)) for minute, took in sorted(minutes.items()) if len(took) >= LEAST_SAMPLES]
    if len(full) < 3:
        return []
    slow = [(at, took[len(took) * 95 // 100]) for at, took in full]
    return [
        _trend("latency of a plain request: median", "ms", [(at, median(took)) for at, took in full]),
        _trend("latency of a plain request: 95th percentile", "ms", slow),
    ]


def _trend(what: str, unit: str, samples: Sequence[tuple[float, float]]) -> Trend:
    times, values = [at for at, _ in samples], [value for _, value in samples]
    start, slope, error = line(times, values)
    return Trend(what, unit, times[-1] - times[0], start, 3600 * slope, 3600 * error)
