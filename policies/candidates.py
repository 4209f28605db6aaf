"""Which instances may take a request, out of a fleet that is too large to look at each for every request?

A `Group` is made when the fleet changes: an agent's instances, a version's, a level's. `Candidates` are a group and a
question that is asked of as few of its members as the choice needs: a draw, or the next in turn. As a sequence they are
the members that may be used, all of them, which costs a look at each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import overload

from policies.base import Instance

LARGE = 64  # up to this many, a look at every instance is cheaper


class Group:
    """Instances that belong together until the next change. Not changed after it was made; identity is equality."""

    __slots__ = ("_by_id", "_regions", "members")

    def __init__(self, members: Iterable[Instance]) -> None:
        self.members = list(members)
        self._by_id: dict[str, Instance] | None = None
        self._regions: frozenset[str] | None = None

    def __repr__(self) -> str:
        return f"<Group of {len(self.members)} instances>"

    def find(self, name: str) -> Instance | None:
        if self._by_id is None:
            self._by_id = {instance.id: instance for instance in self.members}
        return self._by_id.get(name)

    @property
    def regions(self) -> frozenset[str]:
        if self._regions is None:
            self._regions = frozenset(instance.region for instance in self.members)
        return self._regions


class Candidates(Sequence[Instance]):
    """The members of `group` that `may` is true for, for one request."""

    __slots__ = ("_listed", "group", "may")

    def __init__(self, group: Group, may: Callable[[Instance], bool]) -> None:
        self.group, self.may = group, may
        self._listed: list[Instance] | None = None

    def __repr__(self) -> str:
        return f"<Candidates of {self.group!r}>"

    def within(self, group: Group) -> Candidates:
        """The same question about a part of the fleet."""
        return Candidates(group, self.may)

    def draw(self, rng: Random, count: int) -> list[Instance]:
        """Of `count` members drawn at random, some perhaps twice, those that may be used."""
        may = self.may
        return [instance for instance in rng.choices(self.group.members, k=count) if may(instance)]

    def find(self, name: str) -> Instance | None:
        """The instance of that id, if it may be used."""
        instance = self.group.find(name)
        return instance if instance is not None and self.may(instance) else None

    def __bool__(self) -> bool:
        return any(map(self.may, self.group.members))

    def __iter__(self) -> Iterator[Instance]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    @overload
    def __getitem__(self, index: int) -> Instance: ...
    @overload
    def __getitem__(self, index: slice) -> list[Instance]: ...
    def __getitem__(self, index: int | slice) -> Instance | list[Instance]:
        return self._all()[index]

    def _all(self) -> list[Instance]:
        if self._listed is None:
            self._listed = list(filter(self.may, self.group.members))
        return self._listed
