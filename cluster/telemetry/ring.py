"""A ring buffer of time slots: the newest N slots of some seconds each, an array of plain numbers per named column."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from math import isnan
from typing import Any, Generic, Protocol, TypeVar

SET_BACK_S = 60  # a clock that is set back by this or less: the open slot gets what follows until it has caught up
WHOLE, REAL = "I", "f"  # array type codes of columns

S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)
Values = list[Any]  # a number per slot; None where nothing was recorded


class Slot(Protocol[S_contra]):
    """What the samples of one slot add up to."""

    def add(self, sample: S_contra) -> None: ...

    def values(self) -> Mapping[str, float]:
        """By column; NaN where nothing is known."""


class Ring(Generic[S]):
    """The newest `slots` slots of `step` seconds each, an array per column."""

    def __init__(self, step: int, slots: int, columns: Mapping[str, str], new_slot: Callable[[], Slot[S]]) -> None:
        self.step, self.slots, self._new_slot = step, slots, new_slot
        self._columns: dict[str, Any] = {name: array(typecode, [0]) * slots for name, typecode in columns.items()}
        self.first = self.newest = -1  # slot numbers: seconds // step
        self._open = new_slot()

    def add(self, now: int, sample: S) -> None:
        number = now // self.step
        if 0 < (self.newest - number) * self.step <= SET_BACK_S:
            number = self.newest
        if number != self.newest:
            self._move(number)
        self._open.add(sample)
        self._write(number)

    def _move(self, number: int) -> None:
        """Open a later slot; the slots between stay empty. An earlier one, as the clock was set back: what was recorded from
        there on is dropped, and what it has overwritten is not read again."""
        self._open = self._new_slot()
        if 0 <= number < self.newest:
            self.first = max(self.first, self.newest - self.slots + 1)
            self.first = min(self.first, number)
        elif self.newest < 0 or number - self.newest >= self.slots:
            self.first = number
        else:
            for skipped in range(self.newest + 1, number):
                self._write(skipped)
        self.newest = number

    def _write(self, number: int) -> None:
        slot = number % self.slots
        for name, value in self._open.values().items():
            self._columns[name][slot] = value

    def read(self, column: str, first: int, last: int) -> Values:
        """Slots `first` to `last`, both included."""
        oldest = max(self.first, self.newest - self.slots + 1, first)
        newest = min(self.newest, last)
        if self.newest < 0 or newest < oldest:
            return [None] * (last - first + 1)
        numbers, start, count = self._columns[column], oldest % self.slots, newest - oldest + 1
        values = numbers[start : start + count]
        if start + count > self.slots:
            values = values + numbers[: start + count - self.slots]
        recorded: Values = values.tolist()
        if numbers.typecode == REAL:
            recorded = [None if isnan(value) else round(value, 2) for value in recorded]
        return [None] * (oldest - first) + recorded + [None] * (last - newest)
