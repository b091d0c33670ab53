"""The accelerate package's device, mixed precision and gradient accumulation, in one process or several."""

from __future__ import annotations

from typing import Any

import torch

from featinv_fast.config import Precision
from featinv_fast.errors import BackendUnavailableError, ConfigError
from featinv_fast.train import processes
from featinv_fast.train.settings import TrainingConfig

MIXED = {Precision.FP32: "no", Precision.FP16: "fp16", Precision.BF16: "bf16"}
# Of several processes: a copy of the model in each.
KINDS = ("NO", "MULTI_CPU", "MULTI_GPU")


def make_accelerator(config: TrainingConfig) -> Any:
    """An `accelerate.Accelerator` for `config`, alone or together with the other processes that were launched.

    Raises:
        MissingPackageError: accelerate is not installed.
        BackendUnavailableError: a GPU was asked for and there is none, or not one for each process.
        ConfigError: processes were started in another way than by copies of the model that average their gradients.
    """
    device = training_device(config)
    processes.start(device)
    # accelerate keeps device and precision for the whole process; the recipes of one process may differ in them.
    alone = processes.count() == 1
    processes.accelerate_module("accelerate.state").AcceleratorState._reset_state(reset_partial_state=alone)  # noqa: SLF001
    accelerator = processes.accelerate_module("accelerate").Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=MIXED[config.precision],
        gradient_accumulation_steps=config.accumulation,
    )
    kind = str(accelerator.distributed_type.value)
    if accelerator.num_processes != processes.count() or kind not in KINDS:
        raise ConfigError(
            "processes were started in a way that training does not know",
            given=f"{accelerator.num_processes} processes, {kind}",
            expected="one process, or several with a copy of the model each and WORLD_SIZE and RANK in their "
            "environment",
            remedy="start them by `accelerate launch --num_processes N`, or torchrun, without DeepSpeed, FSDP and "
            "other ways to split a model",
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
