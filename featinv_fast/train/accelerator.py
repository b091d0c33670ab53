"""The accelerate package's device, mixed precision and gradient accumulation for one process."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from featinv_fast.config import Precision
from featinv_fast.errors import BackendUnavailableError, ConfigError, MissingPackageError
from featinv_fast.train.settings import TrainingConfig

MIXED = {Precision.FP32: "no", Precision.FP16: "fp16", Precision.BF16: "bf16"}


def make_accelerator(config: TrainingConfig) -> Any:
    """An `accelerate.Accelerator` for `config`.

    Raises:
        MissingPackageError: accelerate is not installed.
        BackendUnavailableError: a GPU was asked for and there is none.
        ConfigError: several processes were started: the data order is defined for one.
    """
    try:
        # By name: the package has no type information.
        accelerate = importlib.import_module("accelerate")
    except ImportError as error:
        raise MissingPackageError(
            "training needs accelerate", given=str(error), remedy="pip install 'featinv-fast[train]'"
        ) from error
    # accelerate keeps device and precision for the whole process; the recipes of one process may differ in them.
    importlib.import_module("accelerate.state").AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001
    accelerator = accelerate.Accelerator(
        cpu=training_device(config).type == "cpu",
        mixed_precision=MIXED[config.precision],
        gradient_accumulation_steps=config.accumulation,
    )
    if accelerator.num_processes > 1:
        raise ConfigError(
            "training runs in one process",
            given=f"{accelerator.num_processes} processes",
            expected="one process",
            remedy="start it without `accelerate launch` or torchrun",
        )
    return accelerator


def training_device(config: TrainingConfig) -> torch.device:
    """The device that `config` means.

    Raises:
        BackendUnavailableError: a GPU was asked for and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailableError(
            "there is no GPU to train on",
            given="device = 'cuda'",
            reasons={"cuda": ["torch sees no NVIDIA GPU"], "cpu": []},
            remedy="use device = 'auto' or 'cpu'",
        )
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
