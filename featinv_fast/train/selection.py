"""The images of a folder that a training sees: listed, looked at, split and sampled."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

from featinv_fast.errors import TrainingError
from featinv_fast.features import class_folders, list_images
from featinv_fast.train import choice
from featinv_fast.train.scan import Scan, Stamp, digest_of, name_of, stamp_of
from featinv_fast.train.settings import OnUnreadable, Split

logger = logging.getLogger(__name__)

NAMED = 10  # images that a message names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Images in the order of `features.list_images`.

    Attributes:
        root: the folder.
        paths: of the images.
        digests: SHA-256 of their contents.
        stamps: by which it shows that a file may have changed since.
        class_names: the sub-folders that hold all of the folder's images, in alphabetical order; none where an image
            lies outside of them. All parts and samples of a folder have the same ones.
        labels: places in `class_names`.
        places: of the images in the whole folder.
        listed: names of all images of the folder.
        skipped: names of images that would belong here and cannot be read, with the reasons.
    """

    root: Path
    paths: tuple[Path, ...]
    digests: tuple[str, ...]
    stamps: tuple[Stamp | None, ...]
    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    places: tuple[int, ...]
    listed: tuple[str, ...]
    skipped: Mapping[str, str]

    def contents(self) -> dict[str, str]:
        """Name of each image -> SHA-256 of its content."""
        return {name_of(path, self.root): digest for path, digest in zip(self.paths, self.digests, strict=True)}

    def is_unchanged(self, number: int) -> bool:
        """Whether an image's file still holds what it held. Its content is read only where its stamp is another one."""
        path = self.paths[number]
        try:
            return stamp_of(path) == self.stamps[number] or digest_of(path) == self.digests[number]
        except OSError:
            return False

    def sha256(self) -> str:
        """Changes when an image, a name or the order does."""
        lines = (f"{name}:{digest}\n" for name, digest in self.contents().items())
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def select(
    folder: str | Path,
    *,
    split: Split | None = None,
    holdout: tuple[float, float] = (0.1, 0.1),
    count: int | None = None,
    seed: int = 0,
    on_unreadable: OnUnreadable = OnUnreadable.FAIL,
    scan: Scan | None = None,
) -> Selection:
    """Choose images; see `DataConfig` and `choice` for the arguments.

    Args:
        folder: see `features.list_images`.
        split: the part, or all of the folder.
        holdout: shares of the validation and of the test part.
        count: how many of them.
        seed: of both choices.
        on_unreadable: what to do where some of the chosen images cannot be read.
        scan: of the folder; a new one without a record if there is none.

    Raises:
        ArgumentError: there is no such folder, no image in it or in the part, or there are not so many.
        TrainingError: images cannot be read, and they should not be skipped or no other ones are left.
    """
    root = Path(folder)
    scan = Scan(root) if scan is None else scan
    paths = list_images(root)
    classes = class_folders(root, paths)
    strata = classes or [""] * len(paths)
    places = list(range(len(paths)))
    if split is not None:
        looks = scan.look(paths)
        contents = [look.sha256 or name_of(path, root) for look, path in zip(looks, paths, strict=True)]
        places = choice.part(contents, strata, split, holdout, seed)
    if count is not None:
        names = [name_of(paths[place], root) for place in places]
        places = [places[i] for i in choice.sample(names, [strata[place] for place in places], count, seed)]
    looked = dict(zip(places, scan.look([paths[place] for place in places]), strict=True))
    skipped = {name_of(paths[place], root): look.error for place, look in looked.items() if look.error is not None}
    places = [place for place in places if looked[place].error is None]
    if skipped:
        _report(root, skipped, len(places), on_unreadable)
    class_names = tuple(sorted(set(classes or ())))
    numbers = {name: number for number, name in enumerate(class_names)}
    return Selection(
        root=root,
        paths=tuple(paths[place] for place in places),
        digests=tuple(looked[place].sha256 for place in places),
        stamps=tuple(looked[place].stamp for place in places),
        class_names=class_names,
        labels=tuple(numbers[classes[place]] for place in places) if classes else (),
        places=tuple(places),
        listed=tuple(name_of(path, root) for path in paths),
        skipped=skipped,
    )


def _report(root: Path, skipped: Mapping[str, str], others: int, on_unreadable: OnUnreadable) -> None:
    """Say which images cannot be read; an error unless they may be skipped."""
    count = f"{len(skipped)} of {len(skipped) + others} images in {root} cannot be read"
    listed = "".join(f"\n    {name}: {reason}" for name, reason in list(skipped.items())[:NAMED])
    listed += f"\n    and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    if on_unreadable is OnUnreadable.FAIL or not others:
        skipping = ", or set data.on_unreadable = 'skip' to train without them" if others else ""
        raise TrainingError(
            count,
            given=listed,
            expected="images that can be read",
            remedy=f"mend or remove them{skipping}",
        )
    logger.warning("%s and are skipped:%s", count, listed)
