"""What an inversion has finished by its ledger, and the record of it, `inversion.json`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from featinv_fast.commands.sources import Source
from featinv_fast.errors import OutputExistsError
from featinv_fast.jobs.ledger import Ledger
from featinv_fast.jobs.names import file_stems, readable
from featinv_fast.runtime import Runtime

NOT_REACHED = "this row was not computed: the run was stopped; the same command goes on"

# The place of an item, and the number of one of its images.
Number = tuple[int, int]


class Finished:
    """The images of a run by place and sample: which are done, and what each is called.

    Done is what the ledger has a row of, without an error, and whose picture is there. Everything else is tried again.

    Args:
        ledger: of the run.
        source: of the items.
        seed: of the first row.
        samples: images of each item.

    Raises:
        OutputExistsError: an item that is done has another content now.
    """

    def __init__(self, ledger: Ledger, source: Source, *, seed: int, samples: int) -> None:
        self.samples = samples
        self.flags: dict[str, Any] = {}
        self._ledger = ledger
        self._source = source
        self._seed = seed
        self._rows: dict[Number, dict[str, Any]] = {}
        self._errors: dict[Number, dict[str, Any]] = {}
        self._gone: list[dict[str, Any]] = []  # done, and no input any more
        given = {row["item"]: row["stem"] for row in ledger.rows if "item" in row}
        wished = {item: source.wished_stem(place) for place, item in enumerate(source.items)}
        self._stems = file_stems(wished, given)
        self._take_over()

    def __len__(self) -> int:
        """Images in all."""
        return len(self._source.items) * self.samples

    def __contains__(self, number: Number) -> bool:
        return number in self._rows

    @property
    def count(self) -> int:
        """Images that are done."""
        return len(self._rows)

    def has(self, place: int) -> bool:
        """Whether every image of an item is done."""
        return all((place, sample) in self._rows for sample in range(self.samples))

    def all_tried(self) -> bool:
        """Whether every image is done or has failed."""
        return self._rows.keys() | self._errors.keys() == set(self.numbers())

    def numbers(self) -> Iterator[Number]:
        """Of all images, in order."""
        return ((place, sample) for place in range(len(self._source.items)) for sample in range(self.samples))

    def seed(self, place: int, sample: int) -> int:
        """Depends on the place in the whole run alone, not on which other items are sound."""
        return self._seed + place * self.samples + sample

    def name(self, place: int, sample: int) -> str:
        """What an image is called: its file's name without suffix."""
        stem = self._stems[self._source.items[place]]
        return f"{stem}_{sample}" if self.samples > 1 else stem

    def file(self, place: int, sample: int) -> str:
        """The image's file."""
        return f"{self.name(place, sample)}.png"

    def files(self) -> Iterator[str]:
        """Of all images."""
        return (self.file(*number) for number in self.numbers())

    def row(self, place: int, sample: int, *, error: str | None, recomputed: bool = False) -> dict[str, Any]:
        """The ledger's row of an image."""
        item = self._source.items[place]
        return {
            "item": item,
            "sample": sample,
            "stem": self._stems[item],
            "name": self.name(place, sample),
            "seed": self.seed(place, sample),
            "error": error,
            **({"recomputed": True} if recomputed else {}),
            "input": [*self._source.stamp(place), self._source.digest(place)],
        }

    def enter(self, rows: Sequence[Mapping[str, Any]], flags: dict[str, Any]) -> None:
        """Enter rows into the ledger, and before them what ran, where that is news."""
        flags = flags | {"recomputed": []}
        news = [{"flags": flags}] if flags != self.flags else []
        self._ledger.enter([*news, *rows])
        self.flags = flags
        self._note(rows)

    def fail(self, errors: Mapping[int, str]) -> None:
        """Enter that items cannot be inverted."""
        rows = [self.row(place, k, error=error) for place, error in errors.items() for k in range(self.samples)]
        if rows:
            self._ledger.enter(rows)
            self._note(rows)

    def items(self) -> list[dict[str, Any]]:
        """What the record says of each image."""
        listed = []
        for number in self.numbers():
            row = self._rows.get(number) or self._errors.get(number)
            item = self._source.items[number[0]]
            entry = {
                "name": self.name(*number),
                "seed": self.seed(*number) if row is None else row["seed"],
                "error": NOT_REACHED if row is None else row["error"],
            }
            listed.append(entry | _source_of(item))
        return listed + [
            {"name": row["name"], "seed": row["seed"], "error": None} | _source_of(row["item"]) for row in self._gone
        ]

    def recomputed(self) -> list[int]:
        """Rows that overflowed in half precision and were computed again in fp32."""
        return [row for row, number in enumerate(self.numbers()) if self._rows.get(number, {}).get("recomputed")]

    def _note(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            number = (self._places[row["item"]], row["sample"])
            (self._rows if row["error"] is None else self._errors)[number] = dict(row)

    def _take_over(self) -> None:
        """Rows of earlier runs."""
        self._places = {item: place for place, item in enumerate(self._source.items)}
        there = {path.name for path in self._ledger.folder.iterdir()} if self._ledger.rows else set()
        changed = []
        for row in self._ledger.rows:
            if "flags" in row:
                self.flags = row["flags"]
                continue
            place = self._places.get(row["item"])
            if row["error"] is not None or f"{row['name']}.png" not in there:
                continue
            if place is None:
                self._gone.append(row)
                continue
            *stamp, digest = row["input"]
            if stamp != self._source.stamp(place) and digest != self._source.digest(place):
                changed.append(row["item"])
            self._rows[place, row["sample"]] = row
        if changed:
            changed = list(dict.fromkeys(changed))
            raise OutputExistsError(
                "inputs have changed since they were inverted",
                given=", ".join(map(readable, changed[:10])) + (f" and {len(changed) - 10} more" * (len(changed) > 10)),
                expected="what is done to stay as it was; new items may come",
                remedy="name another folder; or pass --force, which removes what was done and begins anew",
            )


def _source_of(item: str) -> dict[str, str]:
    """The item as text; where its name is none, also as its bytes."""
    text = readable(item)
    return {"source": text} if text == item else {"source": text, "source_bytes": os.fsencode(item).hex()}


def make_record(runtime: Runtime, finished: Finished, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `inversion.json`: what is needed to make the same images again."""
    return {
        "engine": runtime.info["name"],
        "complete": finished.all_tried(),
        "flags": finished.flags | {"recomputed": finished.recomputed()},
        "run": dict(identity),
        "items": finished.items(),
    }
