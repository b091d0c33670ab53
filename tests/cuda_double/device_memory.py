"""Device memory on the CPU, with addresses that die: what is freed is poisoned, and nobody gets its address again."""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

# What freed memory holds: with every bit set, NaN in all floating-point types.
POISON = 0xFF
ALLOCATE = ("empty", "zeros", "empty_like", "zeros_like")
_empty = torch.empty


class IllegalAccessError(RuntimeError):
    """Something read or wrote memory that was freed; a real GPU would have computed with whatever is there now."""

    def __init__(self, what: str) -> None:
        super().__init__(f"CUDA error: an illegal memory access was encountered ({what})")


class Allocation:
    """A tensor's memory. It is kept, so that its address is not used again, and lives while anybody else uses it.

    Args:
        storage: the memory.
        pool: what else keeps it alive: the graph in whose capture it was allocated.
    """

    def __init__(self, storage: torch.UntypedStorage, pool: object = None) -> None:
        self.storage = storage
        self._pool = None if pool is None else weakref.ref(pool)
        self.address, self.size = storage.data_ptr(), storage.nbytes()

    @property
    def pool(self) -> object:
        """What keeps it alive, while that is alive itself; `None` without."""
        return None if self._pool is None else self._pool()

    @property
    def is_referenced(self) -> bool:
        """Whether there are tensors on it."""
        return torch._C._storage_Use_Count(self.storage._cdata) > 1

    @property
    def is_alive(self) -> bool:
        """Whether it may be used."""
        return self.pool is not None or self.is_referenced

    def leave_pool(self) -> None:
        """It was given back to torch's allocator."""
        self._pool = None

    def poison(self) -> None:
        """Overwrite it."""
        if self.size:
            ctypes.memset(self.address, POISON, self.size)


class Reference:
    """Where a tensor was, without keeping its memory alive: what a captured kernel knows."""

    def __init__(self, tensor: Tensor, allocation: Allocation) -> None:
        self.allocation = allocation
        self.dtype, self.shape, self.stride = tensor.dtype, tensor.shape, tensor.stride()
        self.offset = tensor.storage_offset()

    def tensor(self) -> Tensor:
        """A tensor on what the address holds now.

        Raises:
            IllegalAccessError: it was freed.
        """
        if not self.allocation.is_alive:
            raise IllegalAccessError(f"a tensor of shape {tuple(self.shape)} that was freed")
        return _empty(0, dtype=self.dtype).set_(self.allocation.storage, self.offset, self.shape, self.stride)


class DeviceMemory:
    """All allocations. Like a device's, its memory is shared by all threads.

    Attributes:
        allocations: by address.
        on_allocation: is told of each, and may raise.
    """

    def __init__(self) -> None:
        self.allocations: dict[int, Allocation] = {}
        self._graveyard: list[Allocation] = []
        self._lock = threading.RLock()
        self.on_allocation: Callable[[Tensor], None] = lambda _: None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Note what torch's functions allocate."""
        for name in ALLOCATE:
            patch.setattr(torch, name, self._noting(getattr(torch, name)))

    def _noting(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate(*arguments: object, **named: object) -> Tensor:
            self.bury()
            tensor = function(*arguments, **named)
            if tensor.device.type != "meta":
                self.on_allocation(tensor)
                self.allocation(tensor)
            return tensor

        return allocate

    def all(self) -> list[Allocation]:
        """All allocations as they are now, whatever other threads do meanwhile."""
        with self._lock:
            return list(self.allocations.values())

    def bury(self) -> None:
        """Poison what was freed, and keep it from being used again."""
        with self._lock:
            for address, allocation in list(self.allocations.items()):
                if not allocation.is_alive:
                    allocation.poison()
                    self._graveyard.append(self.allocations.pop(address))

    def allocation(self, tensor: Tensor, pool: object = None) -> Allocation:
        """The memory of a tensor; where it is new, it belongs to `pool`."""
        storage = tensor.untyped_storage()
        with self._lock:
            if storage.data_ptr() not in self.allocations:
                self.allocations[storage.data_ptr()] = Allocation(storage, pool)
            return self.allocations[storage.data_ptr()]

    def reference(self, tensor: Tensor, pool: object = None) -> Reference:
        """Where a tensor is."""
        return Reference(tensor, self.allocation(tensor, pool))

    def view(self, address: int, shape: tuple[int, ...]) -> np.ndarray:
        """Float32 memory at an address.

        Raises:
            IllegalAccessError: nobody has so much memory there, or not any more.
        """
        size = 4 * math.prod(shape)
        self.bury()
        for allocation in self.all():
            if allocation.address <= address and address + size <= allocation.address + allocation.size:
                buffer = (ctypes.c_float * math.prod(shape)).from_address(address)
                return np.frombuffer(buffer, np.float32).reshape(shape)
        raise IllegalAccessError(f"{size} bytes at {address}, which nobody has")
