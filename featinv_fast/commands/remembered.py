"""An engine whose results wait in a ledger, so that an evaluation that was stopped inverts nothing twice."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from featinv_fast.config import FeatureLayout, from_dict, to_dict
from featinv_fast.errors import FeatInvError
from featinv_fast.evaluate import Inverter
from featinv_fast.jobs.ledger import Ledger
from featinv_fast.jobs.stop import held
from featinv_fast.runtime import Inversion, OutputType, RunFlags

FOLDER = "slices"


class RememberedInverter:
    """Asks an engine only for what the ledger does not have.

    A batch is known by its seeds and setting; that the same seeds come with the same features is what the ledger's
    identity is for. Everything else of an evaluation follows from the images, so that it ends with the same tables.

    Args:
        inverter: the engine.
        ledger: of the evaluation; the images of a batch are a file in its folder "slices".
    """

    def __init__(self, inverter: Inverter, ledger: Ledger) -> None:
        self._inverter = inverter
        self._ledger = ledger
        self._seconds = 0.0
        self._rows = {self._key(row): row for row in ledger.rows if "slice" in row}

    @property
    def info(self) -> Mapping[str, Any]:
        """The engine's."""
        return self._inverter.info

    def clock(self) -> float:
        """Seconds that the engine has computed, in this run or an earlier one."""
        return self._seconds

    def invert(
        self,
        features: Any,
        *,
        steps: int | None,
        sampler: str | None,
        guidance_scale: float | None,
        seed: Sequence[int],
        samples: int,
        layout: FeatureLayout | str | None,
        errors: str,
    ) -> Inversion:
        """Images of feature maps; see `Inverter`."""
        setting: dict[str, Any] = {
            "steps": steps, "sampler": sampler, "guidance_scale": guidance_scale, "samples": samples
        }  # fmt: skip
        row: dict[str, Any] = {"slice": [seed[0], len(seed)], "setting": setting}
        known = self._rows.get(self._key(row))
        if known is not None and (self._ledger.folder / known["file"]).is_file():
            self._seconds += known["seconds"]
            return self._read(known, seed)
        started = time.perf_counter()
        inversion = self._inverter.invert(features, **setting, seed=seed, layout=layout, errors=errors)
        seconds = time.perf_counter() - started
        self._seconds += seconds
        row |= {
            "file": f"{FOLDER}/{len(self._rows):06d}.npy" if known is None else known["file"],
            "seconds": seconds,
            "flags": to_dict(inversion.flags),
            "errors": {str(number): str(error) for number, error in inversion.errors.items()},
        }
        with held():
            self._ledger.claim([row["file"]])
            self._ledger.write(row["file"], lambda file: np.save(file, inversion.images))
            self._ledger.enter([row])
            self._rows[self._key(row)] = row
        return inversion

    def forget(self) -> None:
        """Remove the images of all batches: what they were for is written."""
        self._ledger.drop([row["file"] for row in self._rows.values()])

    def _read(self, row: Mapping[str, Any], seed: Sequence[int]) -> Inversion:
        return Inversion(
            images=np.load(self._ledger.folder / row["file"], allow_pickle=False),
            latents=torch.full((len(seed), 0, 0, 0), float("nan")),  # not kept
            seeds=tuple(seed),
            errors={int(number): FeatInvError(error) for number, error in row["errors"].items()},
            output_type=OutputType.UINT8,
            flags=from_dict(RunFlags, row["flags"]),
        )

    @staticmethod
    def _key(row: Mapping[str, Any]) -> str:
        return json.dumps([row["slice"], row["setting"]], sort_keys=True)
