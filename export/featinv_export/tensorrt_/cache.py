"""Plans and kernel times of earlier builds, by content.

A plan takes minutes to build, and it depends on more than its graph. Its key is a hash of all of that, so that a plan
in the cache is either the right one or not found.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featinv_fast.config import from_dict, to_dict
from featinv_fast.engine.files import hash_files
from featinv_fast.engine.lock import exclusive_lock
from featinv_fast.engine.manifest import FileInfo
from featinv_fast.engine.plans import PlanInfo, PlanTarget, PlanWeights, RtxPlanInfo
from featinv_fast.engine.trust import note_built_here
from featinv_fast.errors import FeatInvError

logger = logging.getLogger(__name__)

# What a plan is for.
Info = PlanInfo | RtxPlanInfo

PLAN, RECORD = "plan", "record.json"
# A change of what the builder does with the same options makes old plans others.
BUILDER_VERSION = 1


class PlanCache:
    """A folder of plans.

    Args:
        folder: made when the first plan is stored.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "plans"

    def fetch(self, info: Info, shapes: Sequence[Any], destination: Path) -> bool:
        """Copy the plan to `destination` and say whether there was one. A damaged one is set aside.

        Args:
            info: what the plan must have been built for.
            shapes: its optimisation profiles.
            destination: the file to write.
        """
        entry = self._folder / plan_key(info, shapes)
        if not entry.is_dir():
            return False
        try:
            stored = from_dict(FileInfo, json.loads((entry / RECORD).read_text(encoding="utf-8"))["file"])
            shutil.copyfile(entry / PLAN, destination)
            (found,) = hash_files(destination.parent, [destination.name]).values()
        except (OSError, ValueError, KeyError, FeatInvError) as error:
            return self._quarantine(entry, str(error))
        if found != stored:
            return self._quarantine(entry, f"{found.size} bytes of another content instead of {stored.size}")
        return True

    def store(self, info: Info, shapes: Sequence[Any], plan: bytes) -> None:
        """Keep a plan that was just built, and note that it was built here.

        Raises:
            EngineLockedError: another process is storing the same plan.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        entry = self._folder / plan_key(info, shapes)
        file = FileInfo(sha256=hashlib.sha256(plan).hexdigest(), size=len(plan))
        note_built_here([file.sha256])
        with exclusive_lock(entry.with_name(f".{entry.name}.lock")):
            partial = entry.with_name(f".{entry.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # what a killed build left
            partial.mkdir()
            (partial / PLAN).write_bytes(plan)
            (partial / RECORD).write_text(json.dumps({"info": to_dict(info), "file": to_dict(file)}, indent=2))
            if entry.exists():
                shutil.rmtree(entry)
            partial.rename(entry)

    def why_missing(self, info: Info) -> str:
        """Why there is no plan for `info`: the fields in which the nearest plan of its graph differs."""
        found: list[list[str]] = []
        for record in sorted(self._folder.glob(f"*/{RECORD}")):
            try:
                other = from_dict(type(info), json.loads(record.read_text(encoding="utf-8"))["info"])
            except (OSError, ValueError, KeyError, FeatInvError):
                continue
            if other.graph == info.graph:
                found.append(info.differences(other))
        if not found:
            return f"no plan of {info.graph} in the cache"
        nearest: list[str] = min(found, key=len)
        return f"the nearest plan of {info.graph} in the cache has {', '.join(nearest) or 'other shapes'}"

    def _quarantine(self, entry: Path, reason: str) -> bool:
        aside = entry.with_name(f".{entry.name}.damaged-{secrets.token_hex(4)}")
        logger.warning("a plan in the cache is damaged (%s): set aside as %s", reason, aside)
        entry.rename(aside)
        return False


class TimingCache:
    """Kernel times measured by earlier builds, in one file for each GPU and version of TensorRT.

    Args:
        folder: of the caches.
        target: this machine.
        file: a file of the user's own instead.
    """

    def __init__(self, folder: Path, target: PlanTarget, file: Path | None = None) -> None:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{target.tensorrt}-cuda{target.cuda}-{target.gpu}")
        self._file = file or folder / "timings" / f"{name}.timings"

    def read(self) -> bytes:
        """What is known; nothing where nothing was stored or can be read."""
        try:
            return self._file.read_bytes()
        except OSError:
            return b""

    def write(self, content: bytes) -> None:
        """Replace what is known, in one step; where that is impossible, later builds measure again."""
        partial = self._file.with_name(f".{self._file.name}.{secrets.token_hex(4)}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            partial.replace(self._file)
        except OSError as error:
            logger.warning("kernel times are not kept for later builds: %s", error)


def plan_key(info: Info, shapes: Sequence[Any]) -> str:
    """A hash of everything that a plan's content depends on."""
    content = to_dict(info)
    if isinstance(info, PlanInfo) and info.weights is PlanWeights.STRIPPED:
        del content["weights_sha256"]
    document = json.dumps({"builder": BUILDER_VERSION, "shapes": shapes, **content}, sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()
