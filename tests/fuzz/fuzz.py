"""Read many damaged, hostile and odd inputs, and say what happened.

    python tests/fuzz/fuzz.py                                    # 3,000 inputs
    python tests/fuzz/fuzz.py --count 50000 --seed 1000000       # others
    python tests/fuzz/fuzz.py --target images --seed 17 --count 1

Prints a table by target and one finding of each kind; leaves with 1 where there is one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping

from harness import ALLOCATION, CRASH, HANG, OUTSIDE, Finding, Part, Result, fuzz
from targets import SHARES, corpus, shared_out

COLUMNS = (
    "target", "inputs", "past header", "refused", "accepted", "outside", "crashes", "hangs", "over-allocations",
    "worst s", "worst MiB",
)  # fmt: skip


def main() -> int:
    """Fuzz; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000, help="inputs, of all targets together")
    parser.add_argument("--seed", type=int, default=0, help="of each target's first input")
    parser.add_argument("--target", choices=SHARES, help="this one alone")
    options = parser.parse_args()
    counts = {options.target: options.count} if options.target else shared_out(options.count)
    results = fuzz(planned(counts, options.seed)).values()
    lines = [table(results), *(f"{count} like {finding}" for finding, count in examples(results).items())]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(any(result.problems for result in results))


def planned(counts: Mapping[str, int], first: int) -> list[Part]:
    """For each target its corpus, and so many mutants. A seed below zero is one of the corpus and nothing else."""
    if first < 0:
        return [(name, first, count) for name, count in counts.items()]
    kept = [(name, -len(corpus(name)), len(corpus(name))) for name in counts if corpus(name)]
    return kept + [(name, first, count) for name, count in counts.items()]


def table(results: Collection[Result]) -> str:
    """The figures, a line for each target and one for all."""
    rows = [row(result) for result in (*results, together(results))]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in (COLUMNS, *rows))


def together(results: Collection[Result]) -> Result:
    """All targets as one."""
    sums = {
        name: sum(getattr(result, name) for result in results)
        for name in ("inputs", "past_header", "refused", "accepted")
    }
    worst = {name: max(getattr(result, name) for result in results) for name in ("worst_seconds", "worst_grown")}
    return Result("all", **sums, **worst, findings=[finding for result in results for finding in result.findings])


def row(result: Result) -> tuple[str, ...]:
    """A line of the table."""
    findings = (str(result.count(kind)) for kind in (OUTSIDE, CRASH, HANG, ALLOCATION))
    return (
        result.target,
        str(result.inputs),
        f"{result.share_past_header:.0%}",
        str(result.refused),
        str(result.accepted),
        *findings,
        f"{result.worst_seconds:.2f}",
        f"{result.worst_grown / 2**20:.0f}",
    )


def examples(results: Collection[Result]) -> dict[Finding, int]:
    """One finding of each kind and place, and how many there are of it."""
    first: dict[tuple[str, ...], Finding] = {}
    counts: dict[Finding, int] = {}
    for finding in together(results).findings:
        key = (finding.target, finding.kind, finding.what.partition(":")[0][:40], *finding.where[:1])
        example = first.setdefault(key, finding)
        counts[example] = counts.get(example, 0) + 1
    return counts


if __name__ == "__main__":
    sys.exit(main())
