"""A few thousand inputs of every kind, and the fuzzer itself on faults that are planted."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import harness
from fuzz import planned
from targets import SHARES, shared_out
from targets.planted import FAULTS

INPUTS = 3000


@pytest.fixture(scope="session")
def results():
    """What happened to all inputs, by target."""
    return harness.fuzz(planned(shared_out(INPUTS), first=0))


@pytest.mark.parametrize("target", SHARES)
def test_no_input_escapes_the_error_family_hangs_crashes_or_takes_too_much_memory(results, target):
    assert results[target].inputs >= shared_out(INPUTS)[target]
    assert results[target].problems == []


@pytest.fixture(scope="session")
def planted():
    """What the fuzzer says of each fault, by its name."""
    seeds = {}
    for seed in range(1000):
        seeds.setdefault(Random(f"planted {seed}").choice(FAULTS), seed)
    plan = [("planted", seeds[fault], 1) for fault in FAULTS]
    result = harness.fuzz(plan, hang_seconds=3.0)["planted"]
    by_seed = {finding.seed: finding for finding in result.findings}
    assert len(by_seed) == len(result.findings), "one finding for each fault"
    return result, {fault: by_seed.get(seeds[fault]) for fault in FAULTS}


def test_what_is_sound_or_refused_is_no_finding(planted):
    result, findings = planted
    assert [findings[fault] for fault in ("none", "refused")] == [None, None]
    assert (result.inputs, result.refused, result.past_header) == (len(FAULTS), 1, len(FAULTS) - 2)


@pytest.mark.parametrize(
    ("fault", "kind", "what"),
    [
        ("outside", harness.OUTSIDE, "KeyError"),
        ("warning", harness.OUTSIDE, "UserWarning: nobody expects this"),
        ("destructor", harness.OUTSIDE, "left open"),
        ("exit", harness.OUTSIDE, "SystemExit"),
        ("message", harness.OUTSIDE, "20000 characters"),
        ("allocation", harness.ALLOCATION, "declares 0"),
        ("crash", harness.CRASH, "SIGSEGV"),
        ("hang", harness.HANG, ""),
    ],
)
def test_every_kind_of_fault_is_found_and_placed(planted, fault, kind, what):
    finding = planted[1][fault]
    assert finding.kind == kind
    assert what in finding.what
    assert fault == "allocation" or finding.where
