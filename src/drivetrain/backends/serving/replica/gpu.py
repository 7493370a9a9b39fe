"""Memory of this machine's NVIDIA GPUs, by the driver's own library: no framework is imported, and no GPU is woken."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

_LIBRARY = "libnvidia-ml.so.1"


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """One GPU; bytes."""

    index: int
    used: int
    total: int


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Gpus:
    """The machine's GPUs; none where there is no driver. Looking costs some 10 us a GPU."""

    def __init__(self) -> None:
        self._library: ctypes.CDLL | None = None
        self._handles: list[ctypes.c_void_p] = []
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError:
            return
        if library.nvmlInit_v2() == 0:
            self._library = library
            self._handles = _handles(library)

    def memory(self) -> Sequence[GpuMemory]:
        """How much of each is in use, by all processes."""
        found = []
        for index, handle in enumerate(self._handles):
            memory = _Memory()
            if self._library is not None and self._library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0:
                found.append(GpuMemory(index, memory.used, memory.total))
        return found


def _handles(library: ctypes.CDLL) -> list[ctypes.c_void_p]:
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return []
    found = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) == 0:
            found.append(handle)
    return found
