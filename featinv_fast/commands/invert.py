"""`featinv invert`: images or files of feature maps in, reconstructions out; started again, it goes on."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from featinv_fast.checks import count
from featinv_fast.commands.identity import inputs_below, running_identity
from featinv_fast.commands.invert_options import GO_ON, RECORD, InvertOptions
from featinv_fast.commands.invert_record import Finished, make_record
from featinv_fast.commands.sources import Chunk, ImagesInFolder, MapsInFile, Source
from featinv_fast.config import to_dict
from featinv_fast.errors import FileError, OutOfMemoryError
from featinv_fast.features import items_at, list_images, open_backbone
from featinv_fast.jobs.ledger import Ledger, open_ledger
from featinv_fast.jobs.stop import held
from featinv_fast.runtime import Inversion, InversionInterrupted, Runtime

# Feature maps read at once, where a batch is not larger: far more than a batch, far less than a file of a million maps.
CHUNK = 64
# Pictures written at once: each waits for the disk.
WRITERS = 8
# What a file system answers to a name that it does not take.
BAD_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)


class InvertInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM inside `invert`: what was finished is written, and the same call goes on."""


def invert(runtime: Runtime, options: InvertOptions) -> dict[str, Any]:
    """Invert everything that is not done yet, and write as it goes.

    Returns:
        The record that is also written to `inversion.json`: what ran on what, and each image's name, seed and error.

    Raises:
        FeatInvError: nothing can be inverted: an unknown backbone, features of another shape, ...
        OutputExistsError: the folder holds another run, or files that no run wrote; or done inputs have changed since.
        LockedError: another process writes to the folder.
        FileError: the disk is full, ...; what was finished is on it.
        InvertInterrupted, OutOfMemoryError: what was finished is on the disk, and in a record that is not complete.
    """
    sampling = options.sampling
    samples = count("samples", sampling.get("samples", 1))
    batch = count("batch_size", sampling.get("batch_size", runtime.info.get("usual_batch", 8)))
    source = _source(runtime, options)
    identity = {"given": options.given(), "batch_size": batch, **running_identity(runtime)}
    with open_ledger(options.out, identity, work="inversion", remedy=GO_ON, restart=options.force) as ledger:
        finished = Finished(ledger, source, seed=sampling.get("seed", 0), samples=samples)
        ledger.claim([*finished.files(), RECORD])
        run = _Run(runtime, options, source, ledger, finished, batch)
        try:
            run.compute()
        except (KeyboardInterrupt, OutOfMemoryError) as stopped:
            with held():
                if ledger.rows:
                    _write_record(ledger, make_record(runtime, finished, identity))
            if isinstance(stopped, OutOfMemoryError):
                raise
            done = f"{finished.count} of {len(finished)} images"
            raise InvertInterrupted(f"interrupted: {done} are in {options.out}; the same command goes on") from stopped
        record = make_record(runtime, finished, identity)
        with held():
            _write_record(ledger, record)
    return record


class _Run:
    """What one call of `invert` computes."""

    def __init__(
        self,
        runtime: Runtime,
        options: InvertOptions,
        source: Source,
        ledger: Ledger,
        finished: Finished,
        batch: int,
    ) -> None:
        self._runtime = runtime
        self._options = options
        self._source = source
        self._ledger = ledger
        self._finished = finished
        # Maps computed at once. Every run cuts the items in the same places, so that what is computed together, and
        # with it every bit, does not depend on where an earlier run was stopped.
        self._slice = max(1, batch // finished.samples)
        self._chunk = self._slice * max(1, CHUNK // self._slice)

    def compute(self) -> None:
        """Everything that is missing, a slice at a time."""
        from tqdm import tqdm

        images = len(self._finished) - self._finished.count
        with (
            ThreadPoolExecutor(WRITERS, thread_name_prefix="pictures") as writers,
            tqdm(desc="inverting", unit="step", disable=not self._options.progress) as bar,
        ):

            def advance(steps: int, of: int, at_once: int) -> None:
                if bar.total is None:  # a call tells how many steps an image takes
                    bar.total = images * of // at_once
                bar.update(steps)

            for chunk, rows in self._missing():
                self._invert(chunk, rows, writers, advance)

    def _missing(self) -> Iterator[tuple[Chunk, list[int]]]:
        """Chunks, and which of their maps to invert together."""
        count, finished = len(self._source.items), self._finished
        for start in range(0, count, self._chunk):
            places = range(start, min(start + self._chunk, count))
            if all(map(finished.has, places)):
                continue
            chunk = self._source.read(places)
            finished.fail({place: error.message(command_line=True) for place, error in chunk.errors.items()})
            for first in range(0, len(chunk.places), self._slice):
                rows = range(first, min(first + self._slice, len(chunk.places)))
                missing = [row for row in rows if not finished.has(chunk.places[row])]
                if missing:
                    yield chunk, missing

    def _invert(
        self, chunk: Chunk, rows: list[int], writers: ThreadPoolExecutor, advance: Callable[[int, int, int], None]
    ) -> None:
        finished = self._finished
        places = [chunk.places[row] for row in rows]
        seeds = [finished.seed(place, sample) for place in places for sample in range(finished.samples)]
        sampling = self._options.sampling | {"seed": seeds}
        try:
            with items_at([self._source.place(place) for place in places]):
                inversion = self._runtime.invert(
                    chunk.maps[rows],
                    layout=chunk.layout,
                    errors="return",
                    progress=(lambda steps, of: advance(steps, of, len(seeds))) if self._options.progress else False,
                    **sampling,
                )
        except (InversionInterrupted, OutOfMemoryError) as stop:
            if stop.finished is not None:
                with held():
                    self._keep(stop.finished, places, writers, stopped=True)
            raise
        with held():
            self._keep(inversion, places, writers, stopped=False)

    def _keep(self, inversion: Inversion, places: list[int], writers: ThreadPoolExecutor, *, stopped: bool) -> None:
        """Write the pictures, then enter them."""
        finished = self._finished
        images = inversion.to_pil()
        numbered = [(place, sample) for place in places for sample in range(finished.samples)]
        recomputed = set(inversion.flags.recomputed)
        written = {
            row: writers.submit(self._write, finished.file(*number), image)
            for row, (number, image) in enumerate(zip(numbered, images, strict=True))
            if image is not None and number not in finished
        }
        rows: list[dict[str, Any]] = []
        failures: list[FileError] = []
        for row, number in enumerate(numbered):
            if row in written:
                try:
                    error = written[row].result()
                except FileError as failure:
                    failures.append(failure)
                    continue
            elif number in finished or stopped:  # what was stopped has no result yet, or its error is found again
                continue
            else:
                error = inversion.errors[row].message(command_line=True)
            rows.append(finished.row(*number, error=error, recomputed=row in recomputed))
        finished.enter(rows, to_dict(inversion.flags))
        if failures:
            raise failures[0]

    def _write(self, name: str, image: Image.Image) -> str | None:
        """Write a picture; what is wrong with its name, which costs no other picture."""
        try:
            self._ledger.write(name, lambda file: image.save(file, "PNG"))
        except FileError as error:
            if error.errno in BAD_NAME:
                return error.message(command_line=True)
            raise
        return None


def _source(runtime: Runtime, options: InvertOptions) -> Source:
    spec = runtime.engine.manifest.features
    if options.features is not None:
        return MapsInFile(options.features, spec, options.layout)
    assert options.images is not None
    paths = inputs_below(options.images, list_images(options.images), options.out)
    backbone = open_backbone(
        spec,
        backbone=options.backbone,
        layer=options.layer,
        image_size=options.image_size,
        weights=options.backbone_weights,
        device=runtime.info["device"],
    )
    return ImagesInFolder(options.images, paths, backbone, options.reading)


def _write_record(ledger: Ledger, record: dict[str, Any]) -> None:
    content = json.dumps(record, indent=2).encode("ascii") + b"\n"
    ledger.write(RECORD, lambda file: file.write(content))
