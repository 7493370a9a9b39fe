"""A few numbers that front and worker share without a message: what has begun, what runs since when, what is to be interrupted.

They are read and written as aligned 64-bit values, one writer each, so no lock is needed. The front can thus tell, also when the worker
hangs or has died, which calls it had begun.
"""

from __future__ import annotations

import mmap
import os
import tempfile

_BEGUN, _DECODING, _CANCEL, _SLOTS = 0, 1, 2, 8
SLOTS = 1024
"""Predictions at once that are seen here; of more than these, the rest runs unseen."""
_SIZE = 8 * (_SLOTS + 2 * SLOTS)


class Cell:
    """The shared numbers: made with `create` in the front, and as `Cell(descriptor)` in the worker."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, _SIZE)
        self._view = memoryview(self._map)
        self.numbers = self._view.cast("Q")
        """0: the highest id that has begun (ids begin in order); 1: the id whose body is being read; 2: the id to interrupt;
        from 8 on for each slot: the id that runs there."""
        self.times = self._view.cast("d")
        """Beside the ids of the slots: when each began, in seconds of `time.monotonic()`."""

    @classmethod
    def create(cls) -> Cell:
        """New shared memory, all zero."""
        descriptor = _anonymous()
        os.ftruncate(descriptor, _SIZE)
        return cls(descriptor)

    @property
    def begun(self) -> int:
        """The highest id whose prediction has begun."""
        return self.numbers[_BEGUN]

    @property
    def decoding(self) -> int:
        """The id of the call whose body is being read; 0 for none."""
        return self.numbers[_DECODING]

    @property
    def cancel(self) -> int:
        """The id of the call that is to be interrupted."""
        return self.numbers[_CANCEL]

    @cancel.setter
    def cancel(self, number: int) -> None:
        self.numbers[_CANCEL] = number

    def running(self, slots: int) -> list[tuple[int, float]]:
        """Ids that run in the first so many slots, each with when it began. A batch runs under the id of its first call."""
        numbers, times = self.numbers, self.times
        places = range(_SLOTS, _SLOTS + 2 * min(slots, SLOTS), 2)
        return [(numbers[place], times[place + 1]) for place in places if numbers[place]]

    def close(self) -> None:
        """Lets the memory go."""
        self.numbers.release()
        self.times.release()
        self._view.release()
        self._map.close()
        os.close(self.descriptor)


def slot(number: int) -> int:
    """Where slot `number` (from 0) keeps the id of what runs there; its time is one further on."""
    return _SLOTS + 2 * number


def _anonymous() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("drivetrain-cell")
    with tempfile.TemporaryFile() as file:  # where there is no anonymous memory by descriptor
        return os.dup(file.fileno())
