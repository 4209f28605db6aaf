"""How far is it from one region to another?

Round-trip milliseconds: as configured, else as measured by gateways, else the great circle between known cloud
regions (policies/regions/cloud_regions.py), else unknown, and then priority decides. A region is always nearest
to itself. Measured times less than 2 ms apart are equal: priority decides between them, not noise. Not a substitute
for measuring: a great circle knows no cables (Cape Town to Bahrain goes through Europe).
Source: Envoy's locality priorities, ordered per client instead of once.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import asin, cos, inf, radians, sin, sqrt

from policies.regions.cloud_regions import COORDINATES

EARTH_KM = 6371.0
MS_PER_KM = 0.014  # there and back in fibre is 0.01; cables are about 1.4 times as long as the great circle
EQUAL_MS = 2.0
CONFIGURED, MEASURED, ESTIMATED = "configured", "measured", "estimated"  # the source of a distance


class Distances:
    """Distances between regions. The same both ways unless the configuration distinguishes them."""

    def __init__(self, configured: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self._configured = configured or {}
        self._measured: dict[tuple[str, str], float] = {}
        self.stamp = 0  # changes whenever a distance may have changed

    def configure(self, configured: Mapping[str, Mapping[str, float]]) -> None:
        """Other configured distances; measured ones are kept."""
        self._configured = configured
        self.stamp += 1

    def measured(self, here: str, there: str, ms: float) -> None:
        """Records a round-trip time; the caller smooths."""
        pair = (min(here, there), max(here, there))
        if self._measured.get(pair) != ms:
            self._measured[pair] = ms
            self.stamp += 1

    def lookup(self, here: str, there: str) -> tuple[float | None, str | None]:
        """Round-trip milliseconds and their source; None twice for an unknown distance."""
        if here == there:
            return 0.0, CONFIGURED
        for one, other in ((here, there), (there, here)):
            configured = self._configured.get(one, {}).get(other)
            if configured is not None:
                return configured, CONFIGURED
        measured = self._measured.get((min(here, there), max(here, there)))
        if measured is not None:
            return measured, MEASURED
        if here in COORDINATES and there in COORDINATES:
            return great_circle_km(COORDINATES[here], COORDINATES[there]) * MS_PER_KM, ESTIMATED
        return None, None

    def measurements(self) -> dict[str, dict[str, float]]:
        """The measured distances, each pair once: for `measured` elsewhere."""
        measured_ms: dict[str, dict[str, float]] = {}
        for (one, other), ms in self._measured.items():
            if one != other:
                measured_ms.setdefault(one, {})[other] = ms
        return measured_ms

    def order(self, here: str, priorities: Mapping[str, int]) -> list[tuple[str, ...]]:
        """The regions of `priorities`, nearest first. Equally near ones of the same priority share a rank."""
        by_distance = sorted((*self._far(here, region), priority, region) for region, priority in priorities.items())
        places: list[tuple[float, int, list[str]]] = []  # rank of distance, priority, regions
        start, start_measured = -inf, False
        for ms, measured, priority, region in by_distance:
            near = measured and start_measured and ms - start < EQUAL_MS
            if not near and ms != start:
                start, start_measured = ms, measured
            places.append((start, priority, [region]))
        merged: list[tuple[float, int, list[str]]] = []
        for rank, priority, regions in sorted(places):
            if merged and merged[-1][:2] == (rank, priority):
                merged[-1][2].extend(regions)
            else:
                merged.append((rank, priority, regions))
        return [tuple(regions) for _, _, regions in merged]

    def _far(self, here: str, region: str) -> tuple[float, bool]:
        if region == here:
            return -1.0, False
        ms, source = self.lookup(here, region)
        return (inf if ms is None else ms), source == MEASURED


def great_circle_km(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Between two (latitude, longitude) in degrees. Source: the haversine formula."""
    lat, lon, lat2, lon2 = map(radians, (*one, *other))
    half = sin((lat2 - lat) / 2) ** 2 + cos(lat) * cos(lat2) * sin((lon2 - lon) / 2) ** 2
    return 2 * EARTH_KM * asin(min(1.0, sqrt(half)))
