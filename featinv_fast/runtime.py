"""Runtime: an engine ready to invert feature maps. Condition once, loop, decode."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from featinv_fast import arguments
from featinv_fast.backends import Request, Session, load, reasons_against, resolve_device
from featinv_fast.batching import run_in_batches
from featinv_fast.config import FeatureLayout, Precision, to_dict
from featinv_fast.engine import EngineFolder, open_engine
from featinv_fast.errors import BackendUnavailableError, EngineNotFoundError, NumericalError
from featinv_fast.features import FeatureStatisticsWarning, check_statistics, normalise
from featinv_fast.inversion import Inversion, InversionInterrupted, OutputType, RunFlags, convert_images
from featinv_fast.job import Job
from featinv_fast.sampling import Plan, make_plan

logger = logging.getLogger(__name__)

# Images computed at once where the user names no number: throughput is flat beyond, memory is not.
USUAL_BATCH = {"cpu": 8, "cuda": 32}


class Runtime:
    """An engine, loaded once, that inverts batches of feature maps.

    Calls from several threads are served one after another.

    Args:
        engine: an engine folder, made by `featinv-export`.
        backend: "torch", "onnxruntime", or "auto" for the best that runs here.
        device: "cpu", "cuda", "cuda:N", or "auto" for the first NVIDIA GPU, else the CPU.
        precision: "fp32", "fp16", "bf16", or "auto" for the engine's own.
        threads: CPU threads of one operation; `None` leaves the choice to the backend's library.

    Raises:
        EngineNotFoundError, EngineIntegrityError, EngineFormatError: the engine cannot be opened.
        BackendUnavailableError: no backend, or not the one that was asked for, can run it here.
    """

    def __init__(
        self,
        engine: str | os.PathLike[str] | EngineFolder | None = None,
        *,
        backend: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
    ) -> None:
        if engine is None:
            raise EngineNotFoundError(
                "no engine was named, and this version has no built-in one",
                expected="the path of an engine folder, as in Runtime('convnext.engine')",
                remedy="make one with `featinv-export --ckpt convnext.safetensors --out convnext.engine`",
            )
        self.engine = engine if isinstance(engine, EngineFolder) else open_engine(engine)
        self._request = Request(
            engine=self.engine,
            device=resolve_device(device),
            precision=None if precision == "auto" else arguments.choice("precision", precision, Precision),
            threads=None if threads is None else arguments.count("threads", threads),
        )
        self._session = load(self._request, backend)
        self._fitting_batch = self.engine.manifest.max_batch  # shrinks where memory ran out
        self._lock = threading.RLock()
        self._process = os.getpid()

    @property
    def info(self) -> dict[str, Any]:
        """What runs, as plain data: engine, backend, device, precision, and why other backends do not serve."""
        manifest = self.engine.manifest
        return {
            "engine": str(self.engine.path),
            "name": manifest.name,
            "backend": self._session.backend,
            "device": str(self._session.device),
            "precision": str(self._session.precision),
            "features": to_dict(manifest.features),
            "sampling": to_dict(manifest.sampling),
            "image_size": manifest.model.image_size,
            "max_batch": self._fitting_batch,
            "adaptations": list(manifest.adaptations),
            "reasons_against": reasons_against(self._request),
        }

    def invert(
        self,
        features: Any,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        guidance_scale: float | None = None,
        strength: float = 1.0,
        guess_mode: bool = False,
        eta: float = 0.0,
        seed: int | Sequence[int] = 0,
        samples: int = 1,
        latents: Any = None,
        batch_size: int | None = None,
        layout: FeatureLayout | str | None = None,
        output_type: str = "uint8",
        progress: bool = False,
        errors: str = "raise",
    ) -> Inversion:
        """Turn feature maps into images (arXiv 2505.21032).

        Args:
            features: numpy or torch, any float type: [C, H, W], [B, C, H, W], [B, H, W, C], tokens [B, 1+N, C] (the
                class token is dropped), pooled [B, C] where the engine was trained so, or a list of these.
            steps: sampling steps; the engine's default, or the sampler's usual number for another sampler.
            sampler: "ddim", "lcm" or "dpm++2m"; the engine's default.
            guidance_scale: classifier-free guidance, 1 for none; the engine's default.
            strength: scale of the ControlNet's residuals.
            guess_mode: control that fades towards fine levels, and none in the unconditional branch.
            eta: DDIM's noise, 0 to 1 (arXiv 2010.02502, eq. 16).
            seed: row k uses seed + k; or one seed for each row.
            samples: images for each feature map.
            latents: start noise [N, 4, h, w] in place of the seeds' own.
            batch_size: images computed at once; fewer where memory runs out.
            layout: "nchw", "nhwc", "tokens" or "pooled" where the shape alone does not tell.
            output_type: "uint8", "float", "torch", "pil" or "latent"; see `Inversion.images`.
            progress: show a bar on stderr.
            errors: "raise" an error for a bad map before any work, or "return" the others with `Inversion.errors`.

        Returns:
            The images, `samples` rows for each feature map, in order.

        Raises:
            FeatureShapeError, FeatureLayoutError, ArgumentTypeError: the features do not fit the engine.
            NonFiniteFeatureError: a map holds NaN or infinite values.
            NumericalError: a row overflowed even in fp32; the other rows are in its `finished`.
            ArgumentError: an argument outside its range; the message names the range.
            OutOfMemoryError: not even one image fits into memory.
            InversionInterrupted: Ctrl-C; the finished rows are in its `finished`.
        """
        manifest = self.engine.manifest
        output = arguments.choice("output_type", output_type, OutputType)
        raising = arguments.choice("errors", errors, ("raise", "return")) == "raise"
        samples = arguments.count("samples", samples)
        sampler, table = arguments.step_table(manifest.sampling, sampler, steps, eta)
        scale = manifest.sampling.guidance_scale if guidance_scale is None else guidance_scale
        scale = arguments.finite("guidance_scale", scale)
        strength = arguments.finite("strength", strength)
        size = USUAL_BATCH[self._session.device.type] if batch_size is None else batch_size
        size = arguments.count("batch_size", size)
        maps = normalise(features, manifest.features, layout=layout)
        shape = (len(maps) * samples, *self._latent_shape)
        job = Job(
            maps=maps,
            samples=samples,
            seeds=arguments.seeds(seed, shape[0]),
            start=None if latents is None else arguments.float_tensor("latents", latents, shape),
            latent_shape=self._latent_shape,
            image_size=manifest.model.image_size,
            output_type=output,
        )
        if raising and job.errors:
            raise next(iter(job.errors.values()))
        check_statistics(maps, manifest.features, stacklevel=3)

        def plan(session: Session) -> Plan:
            return make_plan(
                session, manifest.model, table, guidance_scale=scale, strength=strength, guess_mode=guess_mode
            )

        interrupted = False
        with self._exclusive(), _progress_bar(len(job.pending) * len(table), shown=progress) as advance:
            try:
                self._run(job, plan, size, advance)
            except KeyboardInterrupt:
                interrupted = True
        inversion = job.result(
            RunFlags(
                backend=self._session.backend,
                device=str(self._session.device),
                precision=str(self._session.precision),
                sampler=sampler,
                steps=len(table),
                guidance_scale=scale,
                batch_size=min(size, self._fitting_batch),
            )
        )
        if interrupted:
            raise InversionInterrupted(inversion)
        for error in inversion.errors.values():
            if raising and isinstance(error, NumericalError):
                error.finished = inversion
                raise error
        return inversion

    def encode_condition(self, features: Any, *, layout: FeatureLayout | str | None = None) -> Tensor:
        """The condition of feature maps, what the ControlNet adds to its first activation.

        Returns:
            [B, channels, h, w] on the CPU.

        Raises:
            FeatureShapeError, FeatureLayoutError, ArgumentTypeError: the features do not fit the engine.
        """
        maps = normalise(features, self.engine.manifest.features, layout=layout)
        model = self.engine.manifest.model
        condition = torch.empty(len(maps), model.channels, model.latent_size, model.latent_size)
        return self._map("condition_encoder", maps, condition)

    def decode(self, latents: Any, output_type: str = "uint8") -> Any:
        """Decode latents [N, 4, h, w] as `invert(..., output_type="latent")` returns them.

        Returns:
            Images in the form of `output_type`: "uint8", "float", "torch" or "pil".

        Raises:
            ArgumentError: latents of another shape or with NaN.
        """
        forms = [form for form in OutputType if form is not OutputType.LATENT]
        output = arguments.choice("output_type", output_type, forms)
        tensor = arguments.float_tensor("latents", latents, (None, *self._latent_shape))
        size = self.engine.manifest.model.image_size
        return convert_images(self._map("decoder", tensor, torch.empty(len(tensor), 3, size, size)), output)

    def warmup(self, batch_size: int = 1, *, guidance_scale: float | None = None) -> None:
        """Load every graph that `invert` needs and run it once, so that the first real call is not the slow one."""
        spec = self.engine.manifest.features
        edges = (spec.height or 8, spec.width or 8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FeatureStatisticsWarning)  # blank maps are all zeros
            self.invert(
                torch.zeros(arguments.count("batch_size", batch_size), spec.channels, *edges),
                layout=FeatureLayout.NCHW,
                steps=1,
                guidance_scale=guidance_scale,
                batch_size=batch_size,
            )

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        model = self.engine.manifest.model
        return (model.latent_channels, model.latent_size, model.latent_size)

    def _run(self, job: Job, plan: Callable[[Session], Plan], size: int, advance: Callable[[int], None]) -> None:
        """Compute all pending rows, then again in fp32 those that overflowed in half precision."""
        if not job.pending:
            return  # nothing to do: no call of the device at all
        overflowed = self._run_rows(job, job.pending, self._session, plan, size, advance)
        if overflowed and self._session.precision is not Precision.FP32:
            logger.warning("%d rows overflowed in %s: again in fp32", len(overflowed), self._session.precision)
            session = load(dataclasses.replace(self._request, precision=Precision.FP32), "torch")
            job.recomputed += overflowed
            overflowed = self._run_rows(job, overflowed, session, plan, size, lambda _: None)
        for row in overflowed:
            job.errors[row] = NumericalError(
                f"row {row} gave NaN or infinite values in fp32",
                given=f"feature map {row // job.samples}, largest |value| {job.maps[row // job.samples].abs().max()}",
                expected="finite images",
                remedy="check the map's scale, or lower strength and guidance_scale",
            )

    def _run_rows(
        self,
        job: Job,
        rows: list[int],
        session: Session,
        plan: Callable[[Session], Plan],
        size: int,
        advance: Callable[[int], None],
    ) -> list[int]:
        constants = plan(session)
        overflowed: list[int] = []

        def work(batch: Sequence[int]) -> None:
            overflowed.extend(job.compute(session, constants, batch, lambda: advance(len(batch))))

        size = min(size, self._fitting_batch)
        fitting = run_in_batches(rows, size, session.device, work)
        if fitting < size:
            self._fitting_batch = fitting
        return overflowed

    def _map(self, graph: str, inputs: Tensor, output: Tensor) -> Tensor:
        """Fill `output` with what a one-input graph gives for `inputs`, batch by batch."""

        def work(batch: Sequence[int]) -> None:
            rows = slice(batch[0], batch[-1] + 1)
            output[rows] = self._session.run(graph, inputs[rows].to(self._session.device)).cpu()

        with self._exclusive():
            size = min(USUAL_BATCH[self._session.device.type], self._fitting_batch)
            run_in_batches(range(len(inputs)), size, self._session.device, work)
        return output

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One call at a time, and none in a forked child: thread pools and CUDA contexts do not survive a fork."""
        if os.getpid() != self._process:
            raise BackendUnavailableError(
                "this Runtime was made in another process",
                given="a forked process",
                reasons={self._session.backend: ["its threads and device handles do not survive a fork"]},
                remedy="use the 'spawn' start method, and make a Runtime in each process",
            )
        with self._lock:
            yield


@contextlib.contextmanager
def _progress_bar(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A function that advances a bar on stderr by a number of denoising steps."""
    from tqdm import tqdm

    with tqdm(total=total, desc="inverting", unit="step", disable=not shown) as bar:

        def advance(steps: int) -> None:
            bar.update(steps)

        yield advance
