"""What every target is asked: a target is one kind of files that an engine holds beside its weights."""

from __future__ import annotations

import abc
import dataclasses
import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from featinv_export.options import ExportOptions
from featinv_export.parity import Candidate, Case, Comparison, not_run, run_all
from featinv_export.progress import Steps
from featinv_export.tensorrt_ import plans
from featinv_fast.backends.tensorrt_ import TensorrtSession
from featinv_fast.config import Precision
from featinv_fast.engine import EngineFolder
from featinv_fast.engine.files import hash_files
from featinv_fast.engine.plans import BatchProfile


class Target(abc.ABC):
    """The files of one kind, one for each graph, as they are asked for or as an engine has them.

    Attributes:
        title: what the files are called in messages.
        suffix: their names are those of the graphs with it.
        backend: what runs them.
    """

    title: ClassVar[str]
    suffix: ClassVar[str]
    backend: ClassVar[str]

    @classmethod
    @abc.abstractmethod
    def asked(cls, options: ExportOptions) -> Self | None:
        """The target of an export; `None` where it is not asked for."""

    @classmethod
    @abc.abstractmethod
    def carried(cls, engine: EngineFolder) -> Self | None:
        """What an engine has of it; `None` where that is nothing."""

    @abc.abstractmethod
    def require(self, destination: Path) -> None:
        """Refuse before any work where the files cannot be made.

        Args:
            destination: the engine folder, which may not exist yet.

        Raises:
            MissingPackageError, BackendUnavailableError, ExportError: what they need is not here.
        """

    @abc.abstractmethod
    def problems(self, precision: Precision) -> list[str]:
        """Why the files, which compute in `precision`, cannot be run here to check them; empty when they can."""

    def refit_problems(self, precision: Precision) -> list[str]:
        """The same of those files alone that a refit cannot leave out."""
        return self.problems(precision)

    @abc.abstractmethod
    def steps(self, graphs: int) -> tuple[int, int]:
        """How many steps it takes to make the files of so many graphs, and to check them."""

    def space(self, weights: int) -> int:
        """How many bytes the files take when the weights take so many; small ones count for nothing."""
        del weights
        return 0

    @abc.abstractmethod
    def make(self, candidate: Candidate, steps: Steps) -> Self:
        """Write the files into the candidate's folder.

        Returns:
            The target with what is now known of its files.

        Raises:
            ExportError: a file cannot be made.
        """

    def refit(self, engine: EngineFolder, candidate: Candidate) -> Self:
        """Write the files of `engine` into the candidate's folder, where other weights are now.

        Returns:
            The target with what is now known of its files.
        """
        for name in candidate.specs:
            if name + self.suffix in engine.manifest.files:
                shutil.copyfile(engine.path / (name + self.suffix), candidate.folder / (name + self.suffix))
        return self

    def compare(self, candidate: Candidate, cases: Sequence[Case], steps: Steps) -> list[Comparison]:
        """Run the cases of those graphs that have a file in the candidate's folder."""
        own = [case for case in cases if (candidate.folder / (case.graph + self.suffix)).exists()]
        if problems := self.problems(candidate.precision):
            return not_run(self.backend, own, "; ".join(problems))
        return self.run(candidate, own, steps) if own else []

    @abc.abstractmethod
    def run(self, candidate: Candidate, cases: Sequence[Case], steps: Steps) -> list[Comparison]:
        """`compare`, where nothing stands against it."""

    @abc.abstractmethod
    def entries(self) -> dict[str, Any]:
        """The manifest's fields on the files."""

    def tools(self) -> dict[str, str]:
        """The versions of what made the files, by name."""
        return {}

    def installed(self, engine: Path) -> None:
        """What is left to do when the engine is in its place."""
        del engine


@dataclasses.dataclass(frozen=True)
class PlansTarget(Target):
    """Files that are built of the ONNX graphs, and so can be added to an engine that has these.

    Attributes:
        field: of the manifest, that lists them.
        session: runs them.
        options: how they are built; `None` of those that an engine has.
        profiles: the batch sizes that they are built for.
        plans: what is recorded of them, once there are any.
        reasons: why they do not run here, once there are any.
    """

    field: ClassVar[str]
    session: ClassVar[type[TensorrtSession]]

    options: Any = None
    profiles: tuple[BatchProfile, ...] = ()
    plans: tuple[Any, ...] = ()
    reasons: tuple[str, ...] = ()

    def for_batches(self, optimal_batch: int, max_batch: int) -> Self:
        """The same, for an engine with these batch sizes."""
        return dataclasses.replace(self, profiles=self.options.batch_profiles(optimal_batch, max_batch))

    def steps(self, graphs: int) -> tuple[int, int]:
        """One for each plan, and one for the check of all."""
        return graphs, 1

    def space(self, weights: int) -> int:
        """The plans of the two denoisers hold most of the weights each."""
        return 2 * weights

    def run(self, candidate: Candidate, cases: Sequence[Case], steps: Steps) -> list[Comparison]:
        """Run those cases whose batch the plans take."""
        steps.begin(f"checking the {self.title}")
        hashes = hash_files(candidate.folder, [plan.file_name for plan in self.plans])
        make_session = functools.partial(
            self.session,
            candidate.folder,
            {plan.graph: plan for plan in self.plans},
            candidate.specs,
            {plan.graph: hashes[plan.file_name].sha256 for plan in self.plans},
            device=plans.GPU,
            precision=candidate.precision,
        )
        largest = max(profile.maximum for plan in self.plans for profile in plan.profiles)
        results = run_all(candidate, self.backend, [case for case in cases if case.batch <= largest], make_session)
        beyond = [case for case in cases if case.batch > largest]
        return results + not_run(self.backend, beyond, f"the plans take a batch of {largest} at most")

    def entries(self) -> dict[str, Any]:
        """The manifest's list of them."""
        return {self.field: self.plans}
