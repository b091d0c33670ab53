"""Runtime: an engine ready to invert feature maps. Condition once, loop, decode."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featinv_fast.backends import Request, Session, reasons_against, resolve_device
from featinv_fast.checks import choice, count
from featinv_fast.checks.options import check_running, without_effect
from featinv_fast.config import AS_STORED, FeatureLayout, ImageReading, Precision, to_dict
from featinv_fast.engine import EngineFolder, open_engine
from featinv_fast.errors import NumericalError, OutOfMemoryError
from featinv_fast.features import (
    Backbone,
    FeatureStatisticsWarning,
    check_statistics,
    list_images,
    normalise,
    open_backbone,
    require_same_features,
)
from featinv_fast.runtime import arguments
from featinv_fast.runtime.batching import Compute, Executor
from featinv_fast.runtime.call import Call, Progress, non_finite_errors, progress_bar
from featinv_fast.runtime.graph_loop import CudaGraphs, GraphLoop, Loop
from featinv_fast.runtime.inversion import Inversion, InversionInterrupted, OutputType, RunFlags, convert_images
from featinv_fast.runtime.sampling import make_plan
from featinv_fast.samplers import resolve
from featinv_kernels.torch_state import neutral_torch_state

PRECISIONS = ("auto", *Precision)


class Runtime:
    """An engine, loaded once, that inverts batches of feature maps.

    Calls from several threads are served one after another. What a caller has set in torch (default dtype or device,
    autocast, inference mode, the precision of fp32 products) reaches no result and is left as it was.

    Args:
        engine: an engine folder, made by `featinv-export`. `None` opens the built-in engine, which inverts the features
            of `featinv_fast.demo.backbone()` in few steps.
        backend: "torch", "onnxruntime", "tensorrt", "aoti", or "auto" for the best that runs here.
        device: "cpu", "cuda", "cuda:N", or "auto" for the first NVIDIA GPU, else the CPU.
        precision: "fp32", "fp16", "bf16", or "auto" for the engine's own. Rows that overflow are computed again by a
            second copy of the engine in fp32, which is loaded when it is first needed and kept until memory runs out.
        threads: CPU threads of one operation; `None` leaves the choice to the backend's library.
        trust_engine: run native code of the engine (TensorRT plans, AOTInductor packages) that was not built here.
        kernels: what the layers of the torch backend call. "auto": fused operations on an NVIDIA GPU, plain layers on a
            CPU; "off": plain layers; the name of a provider, as "triton", or of one for each operation: fused
            operations by that provider and no other.
        cuda_graphs: how the loop is launched on an NVIDIA GPU by the torch backend. "step": one CUDA graph for a step
            and one for the decoder; "loop": one for all steps and the decoder, during which Ctrl-C has to wait; "off":
            every operation on its own; "auto": as "step", or as "off" where that cannot be, which `info` explains. At
            most 128 steps and decoders stay captured, those used last.
        compiled: let the torch backend compile what runs in every step, and the decoder, by `torch.compile`. Takes a
            C++ compiler, and minutes for a model of full size when a batch first has one item, and when it first has
            more. `kernels` says what the layers are before that.
        two_streams: let the torch backend run the ControlNet beside the U-Net's encoder, on a second CUDA stream. Off
            until a GPU has shown that it pays.
        specialization: when TensorRT for RTX compiles kernels for the shapes at hand: "eager" at the first call of a
            shape, "lazy" beside the calls, which run general kernels meanwhile, or "none" never; "auto" is "eager".

    Raises:
        ArgumentError: no such backend, device, precision, kernels or use of graphs, or options that the backend that
            was asked for does not obey.
        EngineNotFoundError, EngineIntegrityError, EngineFormatError: the engine cannot be opened.
        BackendUnavailableError: no backend, or not the one that was asked for, can run it here.
        OutOfMemoryError: the engine does not fit into memory.
    """

    @neutral_torch_state()
    def __init__(
        self,
        engine: str | os.PathLike[str] | EngineFolder | None = None,
        *,
        backend: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        trust_engine: bool = False,
        kernels: str | Mapping[str, str] = "auto",
        cuda_graphs: str = "auto",
        compiled: bool = False,
        two_streams: bool = False,
        specialization: str = "auto",
    ) -> None:
        precision = choice("precision", precision, PRECISIONS)
        check_running(
            backend=backend,
            threads=threads,
            kernels=kernels,
            cuda_graphs=cuda_graphs,
            compiled=compiled,
            two_streams=two_streams,
            specialization=specialization,
        )
        if engine is None:
            from featinv_fast.demo.builtin import load_engine

            engine = load_engine()
        self.engine = engine if isinstance(engine, EngineFolder) else open_engine(engine)
        self._request = Request(
            engine=self.engine,
            device=resolve_device(device),
            precision=None if precision == "auto" else Precision(precision),
            threads=None if threads is None else int(threads),
            trust_engine=trust_engine,
            kernels=kernels,
            compiled=compiled,
            two_streams=two_streams,
            specialization=specialization,
        )
        self._cuda_graphs = CudaGraphs(cuda_graphs)
        self._executor = Executor(self._request, backend)
        self._loop = GraphLoop(self._executor.session, self._cuda_graphs, self.engine.manifest.max_batch)
        self._backbone: Backbone | None = None

    @property
    def info(self) -> dict[str, Any]:
        """What runs, as plain data: engine, backend, device, precision, and why other backends do not serve."""
        manifest, session = self.engine.manifest, self._executor.session
        return {
            "engine": str(self.engine.path),
            "name": manifest.name,
            "engine_sha256": self.engine.checksum.partition(b" ")[0].decode(),
            "backend": session.backend,
            "device": str(session.device),
            "precision": str(session.precision),
            "features": to_dict(manifest.features),
            "sampling": to_dict(manifest.sampling),
            "image_size": manifest.model.image_size,
            "max_batch": self._executor.fitting_batch,
            "usual_batch": self._executor.usual_batch,
            "kernels": dict(session.providers),
            "compiled": list(session.compiled),
            "two_streams": session.two_streams,
            "specialization": session.specialization,
            "cuda_graphs": self._loop.info(),
            "adaptations": list(manifest.adaptations),
            "reasons_against": reasons_against(self._request),
        }

    @neutral_torch_state()
    def invert(
        self,
        features: Any,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        guidance_scale: float | None = None,
        strength: float = 1.0,
        guess_mode: bool = False,
        unconditional_strength: float | None = None,
        eta: float = 0.0,
        seed: int | Sequence[int] = 0,
        samples: int = 1,
        latents: Any = None,
        batch_size: int | None = None,
        layout: FeatureLayout | str | None = None,
        output_type: str = "uint8",
        progress: bool | Progress = False,
        errors: str = "raise",
    ) -> Inversion:
        """Turn feature maps into images (arXiv 2505.21032).

        Args:
            features: numpy or torch, any float type: [C, H, W], [B, C, H, W], [B, H, W, C], tokens [B, 1+N, C] (the
                class token is dropped), pooled [B, C] where the engine was trained so, or a list of these; where it
                takes several layers, maps by their names or packed (see `features.normalise`).
            steps: sampling steps; the engine's default, or the sampler's usual number for another sampler.
            sampler: "ddim", "lcm" or "dpm++2m"; the engine's default.
            guidance_scale: classifier-free guidance, 1 for none; the engine's default.
            strength: scale of the ControlNet's residuals.
            guess_mode: control that fades towards fine levels, and none in the unconditional branch.
            unconditional_strength: share of `strength` in guidance's unconditional branch: 1, and guidance amplifies
                the prompt; 0, and it amplifies the features; the engine's default.
            eta: DDIM's noise, 0 to 1 (arXiv 2010.02502, eq. 16).
            seed: row k uses seed + k; or one seed for each row.
            samples: images for each feature map.
            latents: start noise [N, 4, h, w] in place of the seeds' own.
            batch_size: images computed at once; fewer where memory runs out.
            layout: "nchw", "nhwc", "tokens" or "pooled" where the shape alone does not tell.
            output_type: "uint8", "float", "torch", "pil" or "latent"; see `Inversion.images`.
            progress: show a bar on stderr, or call this with the denoising steps just made and those of the whole call.
            errors: "raise" an error for a bad map before any work, or "return" the others with `Inversion.errors`.

        Returns:
            The images, `samples` rows for each feature map, in order.

        Raises:
            FeatureShapeError, FeatureLayoutError, ArgumentTypeError: the features do not fit the engine.
            NonFiniteFeatureError: a map holds NaN or infinite values.
            NumericalError: a row overflowed even in fp32; the other rows are in its `finished`.
            ArgumentError: an argument outside its range; the message names the range. Or one that would have no effect,
                as `unconditional_strength` with guidance 1, or a seed beside `latents` where no step draws noise.
            OutOfMemoryError: not even one image fits into memory; the rows done before are in its `finished`.
            InversionInterrupted: Ctrl-C; the finished rows are in its `finished`.
            BackendUnavailableError: this process was forked from the one that made the Runtime.
        """
        self._executor.refuse_fork()
        manifest = self.engine.manifest
        output = choice("output_type", output_type, OutputType)
        raising = choice("errors", errors, ("raise", "return")) == "raise"
        samples = count("samples", samples)
        sampling = resolve(
            manifest.sampling,
            manifest.model,
            steps=steps,
            sampler=sampler,
            guidance_scale=guidance_scale,
            strength=strength,
            guess_mode=guess_mode,
            unconditional_strength=unconditional_strength,
            eta=eta,
        )
        if latents is not None and not sampling.draws_noise and (np.ndim(seed) > 0 or seed != 0):
            raise without_effect(
                {"seed": seed},
                f"latents are the start noise, and {sampling.sampler} draws no other",
                expected="latents or a seed, or a sampling that draws noise in its steps, such as eta=1.0",
            )
        size = count("batch_size", self._executor.usual_batch if batch_size is None else batch_size)
        maps = normalise(features, manifest.features, layout=layout)
        shape = (len(maps) * samples, *self._latent_shape)
        call = Call(
            maps=maps,
            samples=samples,
            seeds=arguments.seeds(seed, shape[0]),
            start=None if latents is None else arguments.float_tensor("latents", latents, shape),
            latent_shape=self._latent_shape,
            image_size=manifest.model.image_size,
            output_type=output,
        )
        if raising and call.errors:
            raise next(iter(call.errors.values()))
        check_statistics(maps, manifest.features, stacklevel=4)  # the decorator is a caller, too

        def begin(session: Session) -> Compute:
            plan = make_plan(
                session,
                manifest.model,
                sampling.table,
                guidance_scale=sampling.guidance_scale,
                strength=sampling.strength,
                guess_mode=sampling.guess_mode,
                unconditional_strength=sampling.unconditional_strength,
            )
            again = session is not self._executor.session
            loop = self._loop if session is self._loop.session else Loop(session)
            return lambda rows: call.compute(loop, plan, rows, advance, again=again)

        stopped: BaseException | None = None
        with self._executor.lock, progress_bar(len(call.pending) * len(sampling.table), shown=progress) as advance:
            try:
                failed = self._executor.compute(call.pending, size, begin)
                call.errors |= {row: error.about(call.subject(row)) for row, error in failed.items()}
            except (KeyboardInterrupt, OutOfMemoryError) as exception:
                stopped = exception
        session = self._executor.session
        inversion = call.result(
            RunFlags(
                backend=session.backend,
                device=str(session.device),
                precision=str(session.precision),
                sampler=sampling.sampler,
                steps=len(sampling.table),
                guidance_scale=sampling.guidance_scale,
                batch_size=min(size, self._executor.fitting_batch),
            )
        )
        if isinstance(stopped, KeyboardInterrupt):
            raise InversionInterrupted(inversion)
        if isinstance(stopped, OutOfMemoryError):
            stopped.finished = inversion
            raise stopped
        for error in inversion.errors.values():
            if raising and isinstance(error, NumericalError):
                error.finished = inversion
                raise error
        return inversion

    def invert_images(
        self,
        images: str | os.PathLike[str] | Iterable[Any],
        *,
        backbone: Backbone | None = None,
        reading: ImageReading = AS_STORED,
        **options: Any,
    ) -> Inversion:
        """What the engine's backbone sees of images, turned into images again.

        Args:
            images: PIL images and paths of image files; or one path, of a folder (`features.list_images` gives the
                order) or of an image.
            backbone: the open one of `features.open_backbone`, for weights of your own or a network that the engine
                does not name; None opens the engine's own, once.
            reading: the choices in reading files.
            options: those of `invert`.

        Returns:
            A row for each image, in order; see `invert`.

        Raises:
            ArgumentError: no images, one that cannot be read, a backbone of other maps, or nobody names one.
            FeatInvError: the backbone cannot be opened; see `features.open_backbone` and `invert`.
        """
        stated = self.engine.manifest.features
        if backbone is None:
            if self._backbone is None:
                self._backbone = open_backbone(stated, device=self._executor.session.device)
            backbone = self._backbone
        else:
            require_same_features(backbone.spec, stated, owner="the backbone", taker="the engine")
        if isinstance(images, str | os.PathLike):
            images = list_images(Path(images))
        maps = list(backbone.extract(images, reading=reading))
        return self.invert(maps, layout=backbone.spec.layout, **options)

    @neutral_torch_state()
    def encode_condition(self, features: Any, *, layout: FeatureLayout | str | None = None) -> Tensor:
        """The condition of feature maps, what the ControlNet adds to its first activation.

        Returns:
            [B, channels, h, w] on the CPU.

        Raises:
            FeatureShapeError, FeatureLayoutError, ArgumentTypeError: the features do not fit the engine.
            NonFiniteFeatureError: a map holds NaN or infinite values.
            NumericalError: a map overflowed even in fp32.
        """
        self._executor.refuse_fork()
        maps = normalise(features, self.engine.manifest.features, layout=layout)
        for error in non_finite_errors(maps).values():
            raise error
        model = self.engine.manifest.model
        condition = torch.empty(len(maps), model.channels, model.latent_size, model.latent_size)
        return self._map("condition_encoder", maps, condition)

    @neutral_torch_state()
    def decode(self, latents: Any, output_type: str = "uint8") -> Any:
        """Decode latents [N, 4, h, w] as `invert(..., output_type="latent")` returns them.

        Returns:
            Images in the form of `output_type`: "uint8", "float", "torch" or "pil".

        Raises:
            ArgumentError: latents of another shape, or with NaN as those of failed rows have.
            NumericalError: latents overflowed even in fp32.
        """
        self._executor.refuse_fork()
        forms = [form for form in OutputType if form is not OutputType.LATENT]
        output = choice("output_type", output_type, forms)
        tensor = arguments.float_tensor("latents", latents, (None, *self._latent_shape))
        size = self.engine.manifest.model.image_size
        return convert_images(self._map("decoder", tensor, torch.empty(len(tensor), 3, size, size)), output)

    @neutral_torch_state()
    def warmup(self, batch_size: int = 1, *, guidance_scale: float | None = None) -> None:
        """Load every graph that `invert` needs and run it once, so that the first real call is not the slow one."""
        self._executor.refuse_fork()
        spec = self.engine.manifest.features
        channels, height, width = spec.map_shape
        edges = (1, 1) if spec.layout is FeatureLayout.POOLED else (height or 8, width or 8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FeatureStatisticsWarning)  # blank maps are all zeros
            self.invert(
                torch.zeros(count("batch_size", batch_size), channels, *edges),
                layout=FeatureLayout.NCHW,
                # A graph of the whole loop serves this number of steps and no other.
                steps=None if self._cuda_graphs is CudaGraphs.LOOP else 1,
                guidance_scale=guidance_scale,
                batch_size=batch_size,
            )

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        model = self.engine.manifest.model
        return (model.latent_channels, model.latent_size, model.latent_size)

    def _map(self, graph: str, inputs: Tensor, output: Tensor) -> Tensor:
        """Fill `output` with what a one-input graph gives for `inputs`, batch by batch."""

        def begin(session: Session) -> Compute:
            def compute(rows: Sequence[int]) -> Sequence[int]:
                output[rows] = session.run(graph, inputs[rows].to(session.device)).cpu()
                finite = torch.isfinite(output[rows]).flatten(1).all(dim=1).tolist()
                return [row for row, is_finite in zip(rows, finite, strict=True) if not is_finite]

            return compute

        with self._executor.lock:
            errors = self._executor.compute(list(range(len(inputs))), self._executor.usual_batch, begin)
        for error in errors.values():
            raise error
        return output
