"""Compiled programs by shape: each is compiled once, while others can run."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

_MOST = 64  # programs that are kept: many shapes cost time for compilation, but not memory


class Programs:
    """Runs functions of arrays one at a time, so that the device holds a single batch."""

    def __init__(self):
        self._slots: OrderedDict[Any, _Slot] = OrderedDict()
        self._lock, self._device = threading.Lock(), threading.Lock()

    def run(self, fn: Callable, *args: Any, **static: Any) -> Any:
        """Returns a function's result as numpy arrays, see `compute`."""
        return jax.device_get(self.compute(fn, *args, **static))

    def compute(self, fn: Callable, *args: Any, **static: Any) -> Any:
        """Returns a function's result, once it is computed.

        Args:
          fn: pure function of `args` and `static`.
          args: trees of arrays.
          static: hashable settings.
        """
        leaves, form = jax.tree.flatten(args)
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        key = (fn, form, shapes, *sorted(static.items()))
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            while len(self._slots) > _MOST:
                self._slots.popitem(last=False)
        with slot.lock:
            if slot.program is None:
                slot.program = jax.jit(partial(fn, **static)).lower(*args).compile()
        with self._device:
            return jax.block_until_ready(slot.program(*args))


class _Slot:
    def __init__(self):
        self.lock = threading.Lock()
        self.program: Callable | None = None
