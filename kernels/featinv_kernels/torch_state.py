"""What surrounds a call in torch, and must neither reach its result nor be changed by it."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class _Setting:
    """One that torch keeps for the whole process: how it is read and set, and the values that we compute with."""

    get: Callable[[], Any]
    put: Callable[[Any], object]
    neutral: tuple[Any, ...]


def _precision(backend: Any) -> _Setting:
    """fp32 stays fp32: no bfloat16 or TF32 inside of products."""
    return _Setting(
        lambda: backend.fp32_precision, lambda value: setattr(backend, "fp32_precision", value), ("none", "ieee")
    )


def _product_precision() -> Any:
    """None where a caller has set it by torch's newer names alone, and the older one has no answer."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _set_product_precision(value: Any) -> None:
    if value is not None:
        torch.set_float32_matmul_precision(value)


_BACKENDS: Any = torch.backends  # which the type checker knows half of
# In the order in which they are set: those that others inherit from come first.
_SETTINGS = (
    _Setting(torch.get_default_dtype, torch.set_default_dtype, (torch.float32,)),
    _Setting(_product_precision, _set_product_precision, ("highest",)),
    *map(_precision, (_BACKENDS, _BACKENDS.mkldnn)),
    *map(_precision, (_BACKENDS.mkldnn.matmul, _BACKENDS.mkldnn.conv, _BACKENDS.mkldnn.rnn, _BACKENDS.cuda.matmul)),
    _Setting(_BACKENDS.cuda.flash_sdp_enabled, _BACKENDS.cuda.enable_flash_sdp, (True,)),
    _Setting(_BACKENDS.cuda.mem_efficient_sdp_enabled, _BACKENDS.cuda.enable_mem_efficient_sdp, (True,)),
    _Setting(_BACKENDS.cuda.cudnn_sdp_enabled, _BACKENDS.cuda.enable_cudnn_sdp, (True,)),
    _Setting(_BACKENDS.cuda.math_sdp_enabled, _BACKENDS.cuda.enable_math_sdp, (True,)),
)
# Torch's own default is TF32 in cuDNN's convolutions, so that these are changed in most calls; on a CPU in none.
_CUDNN_SETTINGS = tuple(map(_precision, (_BACKENDS.cudnn, _BACKENDS.cudnn.conv, _BACKENDS.cudnn.rnn)))
# Kinds of device whose autocast a caller may have switched on.
_AUTOCAST = ("cpu", "cuda")

_CPU = torch.device("cpu")

_lock = threading.Lock()
_calls = 0
_before: list[tuple[_Setting, Any]] = []


@contextlib.contextmanager
def neutral_torch_state(*, gradients: bool = False) -> Iterator[None]:
    """Compute as if nobody had set anything in torch, and leave everything as it was. Also a decorator.

    Default dtype and device, autocast, gradient and inference mode, the precision of fp32 products and the choice of
    attention are neutral inside. Thread counts and the flags of determinism are left to the caller: they change the
    order of sums, not what is computed. Nothing here draws from a global generator.

    Default dtype, precision and attention are torch's for the whole process: where a caller has set them, other threads
    see the neutral values until the last of our calls has ended.

    Args:
        gradients: whether operations are recorded for a backward pass.
    """
    with (
        _neutral_process(),
        contextlib.ExitStack() as stack,
        torch.inference_mode(mode=False),
        torch.set_grad_enabled(gradients),
    ):
        if torch.get_default_device() != _CPU:  # costs microseconds in each of torch's calls
            stack.enter_context(_CPU)
        for kind in _AUTOCAST:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def _neutral_process() -> Iterator[None]:
    """The first of several threads changes what is to be changed, and the last one gives it back."""
    global _calls  # noqa: PLW0603 -- counts the calls of this process
    with _lock:
        if _calls == 0:
            settings = _SETTINGS + (_CUDNN_SETTINGS if torch.cuda.is_initialized() else ())  # type: ignore[no-untyped-call]
            values = [(setting, setting.get()) for setting in settings]
            if any(value not in setting.neutral for setting, value in values):
                _before.extend(values)
                for setting in settings:
                    setting.put(setting.neutral[0])
        _calls += 1
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if _calls == 0:
                for setting, value in _before:
                    setting.put(value)
                _before.clear()
