"""What every target is asked: a target is one kind of files that an engine holds beside its weights.

The command line asks before torch is loaded, so targets import where they use it whatever needs that.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from featinv_export.options import ExportOptions
from featinv_export.progress import Steps
from featinv_fast.checks.options import flag
from featinv_fast.config import Precision
from featinv_fast.engine import EngineFolder, Manifest, TargetInfo
from featinv_fast.engine.files import hash_files
from featinv_fast.engine.plans import BatchProfile

if TYPE_CHECKING:
    from featinv_export.parity import Candidate, Case, Comparison
    from featinv_fast.backends.tensorrt_ import TensorrtSession


class Target(abc.ABC):
    """The files of one kind, one for each graph, as they are asked for or as an engine has them.

    Attributes:
        option: name of what asks for them, on the command line and in `ExportOptions`.
        help: what the command line says of it.
        title: what the files are called in messages.
        suffix: their names are those of the graphs with it.
        backend: what runs them.
        of_graphs: whether they are made of the ONNX graphs, and so can be added to an engine that has these.
    """

    option: ClassVar[str]
    help: ClassVar[str]
    title: ClassVar[str]
    suffix: ClassVar[str]
    backend: ClassVar[str]
    of_graphs: ClassVar[bool] = False

    @classmethod
    def add_argument(cls, group: Any) -> None:
        """Add the option to a command line, by default as a flag. It has no value unless it is given."""
        group.add_argument(flag(cls.option), action="store_const", const=True, help=cls.help)

    @classmethod
    def of(cls, given: Any) -> Self:
        """The target that this value of the option asks for."""
        del given
        return cls()

    @classmethod
    def asked(cls, options: ExportOptions) -> Self | None:
        """The target of an export; `None` where it is not asked for."""
        given = options.target(cls.option)
        return cls.of(given) if given else None

    @classmethod
    def carried(cls, engine: EngineFolder) -> Self | None:
        """What an engine has of it; `None` where that is nothing."""
        return cls() if cls.lies_in(engine.manifest.files) else None

    @classmethod
    def lies_in(cls, names: Collection[str]) -> bool:
        """Whether some of these files of an engine are of this kind."""
        return any(name.endswith(cls.suffix) for name in names)

    @classmethod
    def content(cls, manifest: Manifest) -> str:
        """What the model card says of each file after what its graph computes."""
        return f"{cls.title}{_in_words(cls._facts(manifest))}"

    @classmethod
    def described(cls, manifest: Manifest) -> list[str]:
        """What `--inspect` says of the files beside their sizes, a line each."""
        facts = _in_words(cls._facts(manifest))
        return [f"{cls.title}{facts}"] if facts else []

    @classmethod
    def _facts(cls, manifest: Manifest) -> dict[str, str]:
        return next((info.facts for info in manifest.targets if info.suffix == cls.suffix), {})

    def added_to(self, manifest: Manifest) -> tuple[Self, Manifest]:
        """The target for an engine that is there, and what the engine's manifest then is but for the files."""
        return self, manifest

    def runs_here(self) -> bool:
        """Whether `run` computes anything: otherwise nothing need be computed to compare it with."""
        return True

    def require(self, destination: Path) -> None:  # noqa: B027 -- many need nothing
        """Refuse before any work where the files cannot be made.

        Args:
            destination: the engine folder, which may not exist yet.

        Raises:
            MissingPackageError, BackendUnavailableError, ExportError: what they need is not here.
        """

    def problems(self, precision: Precision) -> list[str]:
        """Why the files, which compute in `precision`, cannot be run here to check them; empty when they can."""
        del precision
        return []

    def refit_problems(self, precision: Precision) -> list[str]:
        """The same of those files alone that a refit cannot leave out."""
        return self.problems(precision)

    def steps(self, graphs: int) -> tuple[int, int]:
        """How many steps it takes to make the files of so many graphs, and to check them: one for each, and for all."""
        return graphs, 1

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
        from featinv_export.parity import not_run

        own = [case for case in cases if (candidate.folder / (case.graph + self.suffix)).exists()]
        if problems := self.problems(candidate.precision):
            return not_run(self.backend, own, "; ".join(problems))
        return self.run(candidate, own, steps) if own else []

    @abc.abstractmethod
    def run(self, candidate: Candidate, cases: Sequence[Case], steps: Steps) -> list[Comparison]:
        """`compare`, where nothing stands against it."""

    def facts(self) -> dict[str, str]:
        """What the manifest is to say of files for which it has no field, in words, by name."""
        return {}

    def entries(self) -> dict[str, Any]:
        """The manifest's fields on the files."""
        return {"targets": (TargetInfo(suffix=self.suffix, backend=self.backend, facts=self.facts()),)}

    def tools(self) -> dict[str, str]:
        """The versions of what made the files, by name."""
        return {}

    def installed(self, engine: Path) -> None:
        """What is left to do when the engine is in its place."""
        del engine


@dataclasses.dataclass(frozen=True)
class PlansTarget(Target):
    """Plans, of either TensorRT.

    Attributes:
        field: of the manifest, that lists them.
        options: how they are built; `None` of those that an engine has.
        profiles: the batch sizes that they are built for.
        plans: what is recorded of them, once there are any.
        reasons: why they do not run here, once there are any.
    """

    field: ClassVar[str]
    of_graphs = True

    options: Any = None
    profiles: tuple[BatchProfile, ...] = ()
    plans: tuple[Any, ...] = ()
    reasons: tuple[str, ...] = ()

    @classmethod
    @abc.abstractmethod
    def session(cls) -> type[TensorrtSession]:
        """What runs the plans."""

    @classmethod
    def of(cls, given: Any) -> Self:
        """The target of these options."""
        return cls(given)

    @classmethod
    def asked(cls, options: ExportOptions) -> Self | None:
        """The target of an export, for its batch sizes."""
        target = super().asked(options)
        return None if target is None else target.for_batches(options.optimal_batch, options.max_batch)

    def added_to(self, manifest: Manifest) -> tuple[Self, Manifest]:
        """The engine's batch sizes become those of the plans, unless these have none of their own."""
        target = self.for_batches(manifest.optimal_batch, manifest.max_batch)
        optimum, largest = target.profiles[0].optimum, max(profile.maximum for profile in target.profiles)
        fields: dict[str, Any] = {"optimal_batch": optimum, "max_batch": largest, self.field: ()}
        return target, dataclasses.replace(manifest, **fields)

    def for_batches(self, optimal_batch: int, max_batch: int) -> Self:
        """The same, for an engine with these batch sizes."""
        return dataclasses.replace(self, profiles=self.options.batch_profiles(optimal_batch, max_batch))

    def runs_here(self) -> bool:
        """Not where there are reasons."""
        return not self.reasons

    def space(self, weights: int) -> int:
        """The plans of the two denoisers hold most of the weights each."""
        return 2 * weights

    def run(self, candidate: Candidate, cases: Sequence[Case], steps: Steps) -> list[Comparison]:
        """Run those cases whose batch the plans take."""
        from featinv_export.parity import not_run, run_all
        from featinv_export.tensorrt_.plans import GPU

        steps.begin(f"checking the {self.title}")
        hashes = hash_files(candidate.folder, [plan.file_name for plan in self.plans])
        make_session = functools.partial(
            self.session(),
            candidate.folder,
            {plan.graph: plan for plan in self.plans},
            candidate.specs,
            {plan.graph: hashes[plan.file_name].sha256 for plan in self.plans},
            device=GPU,
            precision=candidate.precision,
        )
        largest = max(profile.maximum for plan in self.plans for profile in plan.profiles)
        results = run_all(candidate, self.backend, [case for case in cases if case.batch <= largest], make_session)
        beyond = [case for case in cases if case.batch > largest]
        return results + not_run(self.backend, beyond, f"the plans take a batch of {largest} at most")

    def entries(self) -> dict[str, Any]:
        """The manifest's list of them."""
        return {self.field: self.plans}


def _in_words(facts: Mapping[str, str]) -> str:
    return f": {', '.join(f'{name} {text}' for name, text in facts.items())}" if facts else ""
