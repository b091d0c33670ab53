"""What an export is asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featinv_export.tensorrt_.options import PlanOptions, RtxOptions
from featinv_fast import samplers
from featinv_fast.checks import choice, count
from featinv_fast.config import Precision
from featinv_fast.engine.plans import BATCHES
from featinv_fast.errors import ArgumentError

AOTI_DEVICES = ("auto", "cpu", "cuda")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to make an engine of a checkpoint. `None` leaves a choice to the checkpoint or to the defaults.

    Attributes:
        checkpoint: a `.safetensors` or `.ckpt` file, or a folder in the diffusers layout.
        out: the engine folder to be; `None` is the checkpoint's name with `.engine` in the working directory.
        name: of the engine, for people; `None` is the checkpoint's name.
        onnx: also write the graphs as ONNX, for onnxruntime and others.
        aoti: also compile the graphs with AOTInductor for this device: "cpu", "cuda", or "auto" for the GPU where
            there is one.
        precision: of the graphs' arithmetic and, unless `storage` says otherwise, of the stored weights.
        storage: of the stored weights; half of the size for a rounding of the weights (lossy), while the arithmetic
            keeps `precision`, which is what a CPU is fast in.
        prompt: the prompt; `None` is the one that the checkpoint stores, or the official one.
        negative_prompt: the prompt of the unconditional branch, in the same way.
        tokenizer: CLIP's `tokenizer.json`, or a folder with one; prompts other than the official ones need it.
        backbone: for checkpoints that do not say what features they take, its name; see `features.Backbone`. All but
            the official ones are opened and looked at.
        layer: the backbone's layer, "final", the number of a stage or the path of a module.
        image_size: edge in pixels of what the backbone sees.
        backbone_weights: local weights of the backbone, or "random:SEED": the engine names them by their hash.
        feature_size: height and width of the feature maps in cells.
        max_batch: largest batch of one call.
        optimal_batch: the batch that kernels are tuned for.
        lora: a LoRA that is fused into the U-Net: a file, or the folder that PEFT or diffusers saved.
        lora_scale: factor on what the LoRA adds.
        lora_alpha: the alpha it was trained with, or "rank", where it does not say so itself.
        lcm_unet: a U-Net in the diffusers layout (folder or file) in place of the checkpoint's own.
        sampler: the engine's default sampler.
        steps: the engine's default number of steps.
        guidance_scale: the engine's default guidance scale.
        force: replace an engine that is already at `out`.
        trt: also build TensorRT plans of the ONNX graphs, on the GPU of this machine.
        trt_rtx: also build plans of TensorRT for RTX, for which no GPU is needed.
        targets: what else to write, by the option of its target, with the option's value (`featinv_export.targets`).
        unchecked: install also what cannot be run here to compare it with the plain model; the engine says so.

    Raises:
        ArgumentError: values that contradict each other or lie outside their range.
    """

    checkpoint: Path
    out: Path | None = None
    name: str | None = None
    onnx: bool = False
    aoti: str | None = None
    precision: Precision = Precision.FP32
    storage: Precision | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    tokenizer: Path | None = None
    backbone: str | None = None
    layer: str | None = None
    image_size: int | None = None
    backbone_weights: str | None = None
    feature_size: tuple[int, int] | None = None
    max_batch: int = 64
    optimal_batch: int = 1
    lora: Path | None = None
    lora_scale: float = 1.0
    lora_alpha: float | str | None = None
    lcm_unet: Path | None = None
    sampler: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    force: bool = False
    trt: PlanOptions | None = None
    trt_rtx: RtxOptions | None = None
    targets: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unchecked: bool = False

    @property
    def names_backbone(self) -> bool:
        """Whether anything is said of the backbone."""
        said = (self.backbone, self.layer, self.image_size, self.backbone_weights)
        return any(value is not None for value in said)

    def __post_init__(self) -> None:
        if not 1 <= self.optimal_batch <= self.max_batch <= BATCHES.maximum:
            raise ArgumentError(
                "the batch sizes are out of range",
                given=f"optimal {self.optimal_batch}, largest {self.max_batch}",
                expected=f"1 <= optimal <= largest <= {BATCHES.maximum:,}",
                remedy="choose --optimal-batch and --max-batch so",
            )
        if self.aoti not in (None, *AOTI_DEVICES):
            raise ArgumentError(
                "packages are not made for this device",
                given=self.aoti,
                expected=", ".join(AOTI_DEVICES),
                remedy="name one",
            )
        plans = [options for options in (self.trt, self.trt_rtx) if options is not None]
        for options in plans:
            largest = max(p.maximum for p in options.batch_profiles(self.optimal_batch, self.max_batch))
            if largest != self.max_batch:
                raise ArgumentError(
                    "the plans do not take the engine's largest batch",
                    given=f"profiles up to {largest}, largest batch {self.max_batch}",
                    expected="the same",
                    remedy="let --profile or --max-batch end at the same size",
                )
        if self.feature_size is not None and min(self.feature_size) < 1:
            raise ArgumentError(
                "the feature size is out of range",
                given=self.feature_size,
                expected="height and width of at least 1",
                remedy="choose larger ones",
            )
        numbers = {"LoRA scale": self.lora_scale, "guidance scale": self.guidance_scale}
        for what, number in numbers.items():
            if number is not None and not math.isfinite(number):
                raise ArgumentError(
                    f"the {what} is not finite", given=number, expected="a finite number", remedy="choose one"
                )
        if self.storage not in (None, self.precision) and self.precision is not Precision.FP32:
            raise ArgumentError(
                "weights cannot be stored in another half precision than the arithmetic's",
                given=f"storage {self.storage}, precision {self.precision}",
                expected="fp16 or bf16 for an engine in fp32",
                remedy="leave out --storage or --precision",
            )
        if self.sampler is not None:
            choice("sampler", self.sampler, samplers.SAMPLERS)
        if self.steps is not None:
            count("steps", self.steps)
            if self.sampler is not None:
                samplers.build(self.sampler, self.steps)
        if self.lora is None and self.lora_scale != 1.0:
            raise ArgumentError(
                "a LoRA scale without a LoRA", given=self.lora_scale, expected="a LoRA file", remedy="pass --lora FILE"
            )
        if self.lora is None and self.lora_alpha is not None:
            raise ArgumentError(
                "a LoRA's alpha without a LoRA",
                given=self.lora_alpha,
                expected="a LoRA file",
                remedy="pass --lora FILE",
            )

    def target(self, option: str) -> Any:
        """What is asked for by the option of a target; nothing where that is `None` or false."""
        return self.targets.get(option, getattr(self, option, None))

    @property
    def inputs(self) -> dict[str, Path | None]:
        """What is read, by what it is called."""
        return {
            "checkpoint": self.checkpoint,
            "LoRA file": self.lora,
            "U-Net": self.lcm_unet,
            "tokenizer": self.tokenizer,
        }

    @property
    def stem(self) -> str:
        """The checkpoint's name without its folder and its suffix."""
        if self.checkpoint.is_dir():
            return self.checkpoint.resolve().name
        return Path(self.checkpoint.name.removesuffix(".index.json")).stem

    @property
    def destination(self) -> Path:
        """The engine folder to be."""
        return Path(f"{self.stem}.engine") if self.out is None else self.out
