"""Which level of instances takes a request, and when does a level spill over to the next?

A level is a priority, or with geographic a rank in the order of distance from the client. Loads follow
policies/priority.py and are drawn evenly, not by chance: 70 and 30 are seven and three of every ten. A session gives its own
point between 0 and 100 instead, so that all gateways send it to the same level. A level more than 80 % full passes its
requests down until it is below 70 %. In a level that does not panic only healthy instances are eligible; in panic all
that answer. Not for choosing within a level: that is the strategy's.
Source: Envoy's priority levels; spilling by fullness with hysteresis is our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from random import Random
from typing import Protocol

from policies.base import Instance, Options, Request
from policies.candidates import LARGE, Candidates, Group
from policies.priority import Level, level_loads
from policies.strategies.geographic import priorities
from policies.weighted import SmoothWeighted

FULL_PERCENT, ROOM_PERCENT = 80, 70
MOST_VIEWS = 64  # client regions that are distinguished at a time


class LevelOrder(Protocol):
    """How instances are put into levels, first level first; a level's label never changes."""

    by_client: bool  # whether it depends on the client's region

    @property
    def stamp(self) -> int: ...  # changes when the answer may have changed

    def levels(self, instances: Iterable[Instance], client_region: str) -> list[tuple[str, list[Instance]]]: ...


class ByPriority:
    by_client = False
    stamp = 0

    def levels(self, instances: Iterable[Instance], client_region: str) -> list[tuple[str, list[Instance]]]:
        by_priority: dict[int, list[Instance]] = {}
        for instance in instances:
            by_priority.setdefault(instance.priority, []).append(instance)
        return [(f"priority {number}", by_priority[number]) for number in sorted(by_priority)]


class ByDistance:
    by_client = True

    def __init__(self, options: Options) -> None:
        self._distances = options.distances
        self._regions = frozenset(options.regions)

    @property
    def stamp(self) -> int:
        return self._distances.stamp

    def levels(self, instances: Iterable[Instance], client_region: str) -> list[tuple[str, list[Instance]]]:
        by_region: dict[str, list[Instance]] = {}
        for instance in instances:
            if not self._regions or instance.region in self._regions:
                by_region.setdefault(instance.region, []).append(instance)
        first = priorities((instance for members in by_region.values() for instance in members), by_region)
        places = self._distances.order(client_region, first)
        return [(" ".join(place), [instance for region in place for instance in by_region[region]]) for place in places]


class _View:
    """The levels as the clients of one region see them."""

    __slots__ = ("labels", "loads", "looks", "members", "of", "panic", "plain", "turns", "usable")

    def __init__(self, levels: list[tuple[str, list[Instance]]], turns: SmoothWeighted) -> None:
        self.labels = [label for label, _ in levels]
        self.members = [[instance for instance in members if not instance.draining] for _, members in levels]
        self.of = {instance.id: index for index, (_, members) in enumerate(levels) for instance in members}
        loads = level_loads([_count(members) for members in self.members])
        self.loads, self.panic = loads.healthy, loads.panic
        self.plain = [all(instance.healthy and not instance.draining for instance in members) for _, members in levels]
        self.usable = [
            Group(i for i in of_level if i.healthy or panic) for of_level, panic in zip(self.members, self.panic, strict=True)
        ]
        self.looks = [0] * len(levels)  # requests since a large level was last looked at, whether it is full
        self.turns = turns
        turns.update(dict(zip(self.labels, self.loads, strict=True)))


class LevelChooser:
    """Keeps the turns for each client region and which levels are spilling; reads everything else each time."""

    def __init__(self, rng: Random, order: LevelOrder | None = None) -> None:
        self._rng = rng
        self._order: LevelOrder = order or ByPriority()
        self._views: dict[str, _View] = {}
        self._turns: dict[str, SmoothWeighted] = {}
        self._spilling: set[str] = set()
        self._members: list[Instance] = []
        self._flags: list[list[int]] = []
        self._stamp: object = None
        self._order_stamp = 0

    def __repr__(self) -> str:
        views = (
            f"from {client or 'anywhere'}: {dict(zip(v.labels, v.loads, strict=True))}" for client, v in self._views.items()
        )
        return f"<LevelChooser {'; '.join(views)}; spilling: {sorted(self._spilling)}>"

    def narrow(
        self,
        eligible: Sequence[Instance],
        everyone: Sequence[Instance],
        request: Request,
        *,
        point: float | None = None,
        stamp: object = None,
    ) -> tuple[str, Sequence[Instance]]:
        """The label of the level that takes this request, and its members among `eligible`; empty when none can.

        `everyone`: all instances, for the totals. `point`: 0 to 100, a session's own. `stamp`: anything that the
        caller changes whenever it changes `everyone` or a flag of an instance; None: `narrow` compares them, 0.1 us each.
        """
        self._sync(everyone, stamp)
        view = self._view(request.region, everyone)
        if not view.labels:
            return "", ()
        if len(view.labels) == 1:
            return view.labels[0], _allowed(view, 0, eligible, whole=not self._order.by_client)
        start = self._draw(view, point)
        for index in self._places(view, start):
            members = _allowed(view, index, eligible)
            if members:
                return view.labels[index], members
        return "", ()

    def _sync(self, everyone: Sequence[Instance], stamp: object) -> None:
        """Discards the views when their inputs have changed."""
        order_stamp = self._order.stamp
        if stamp is not None and stamp == self._stamp and order_stamp == self._order_stamp:
            return
        members, flags = list(everyone), _flags(everyone)
        if members != self._members or flags != self._flags or order_stamp != self._order_stamp:
            self._views.clear()
            self._members, self._flags = members, flags
        self._stamp, self._order_stamp = stamp, order_stamp

    def _view(self, region: str, everyone: Sequence[Instance]) -> _View:
        client = region if self._order.by_client else ""
        view = self._views.get(client)
        if view is None:
            turns = self._turns.pop(client, None) or SmoothWeighted({}, self._rng)
            for cache in (self._views, self._turns):
                while len(cache) >= MOST_VIEWS:
                    del cache[next(iter(cache))]
            self._turns[client] = turns
            view = self._views[client] = _View(self._order.levels(everyone, region), turns)
        return view

    def _draw(self, view: _View, point: float | None) -> int:
        if point is None:
            label = view.turns.pick(view.labels)
            return view.labels.index(label) if label is not None else 0
        return next((index for index, reached in enumerate(accumulate(view.loads)) if point < reached), 0)

    def _places(self, view: _View, start: int) -> Iterator[int]:
        """The levels to try: from the drawn one down those with room, then the full ones, then those above."""
        full = []
        for index in range(start, len(view.labels)):
            if self._is_full(view, index):
                full.append(index)
            else:
                yield index
        yield from full
        yield from range(start)

    def _is_full(self, view: _View, index: int) -> bool:
        """A level of many instances is looked at once for as many requests as it has times LARGE instances."""
        label, usable = view.labels[index], view.usable[index].members
        if len(usable) > LARGE:
            view.looks[index] -= 1
            if view.looks[index] > 0:
                return label in self._spilling
            view.looks[index] = len(usable) // LARGE
        rooms = [instance.capacity for instance in usable]
        full = False
        if usable and min(rooms) > 0:  # 0 is no limit
            percent = 100 * sum([instance.load for instance in usable]) / sum(rooms)
            full = percent >= ROOM_PERCENT if label in self._spilling else percent > FULL_PERCENT
        if full:
            self._spilling.add(label)
        else:
            self._spilling.discard(label)
        return full


def _flags(everyone: Sequence[Instance]) -> list[list[int]]:
    """The fields that decide levels and may change while an instance lives; by columns, which is cheapest."""
    return [
        [instance.healthy for instance in everyone],
        [instance.checked for instance in everyone],
        [instance.draining for instance in everyone],
        [instance.priority for instance in everyone],
    ]


def _allowed(view: _View, index: int, eligible: Sequence[Instance], whole: bool = False) -> Sequence[Instance]:
    """The instances of `eligible` in the level that may take a new request. `whole`: there is no other level."""
    if isinstance(eligible, Candidates):
        return eligible.within(view.usable[index])
    if whole and view.plain[index]:
        return eligible
    of, panic = view.of, view.panic[index]
    if view.plain[index]:
        return [instance for instance in eligible if of.get(instance.id) == index]
    return [
        instance
        for instance in eligible
        if of.get(instance.id) == index and not instance.draining and (instance.healthy or panic)
    ]


def _count(members: Sequence[Instance]) -> Level:
    unchecked = sum(not instance.checked for instance in members)
    healthy = sum(instance.healthy and instance.checked for instance in members)
    return Level(total=len(members), healthy=healthy, excluded=unchecked)
