"""Training in several processes: on two of them, on a CPU, what one process trains."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import accelerate
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from featinv_fast.errors import BackendUnavailableError, ConfigError, MissingPackageError
from featinv_fast.train import diffusion, processes, randomness, run
from featinv_fast.train.accelerator import make_accelerator
from featinv_fast.train.base import drop_mask
from featinv_fast.train.logs import read_log
from featinv_fast.train.objective import uneven_parts
from featinv_fast.train.randomness import Share
from featinv_fast.train.settings import Times
from featinv_fast.train.trainer import _require_shares

MORE = """
accumulation = 2
ema_decay = 0.9
clip_norm = 0.1
log_every = 1
checkpoint_every = 2
image_every = 4
"""


@pytest.fixture
def folder(featinv_folder):
    """A recipe with everything that several processes could do twice or each in its own way."""
    recipe = featinv_folder / "recipe.toml"
    text = (
        recipe.read_text()
        .replace("batch_size = 2", "batch_size = 4")
        .replace("[training]", 'cache = "disk"\n[training]')
    )
    recipe.write_text(text + MORE)
    return featinv_folder


@pytest.fixture
def command(folder):
    """`command(*changes)`: what follows `python`, for a run of the recipe in `run`."""

    def make(*changes):
        sets = [word for change in changes for word in ("--set", change)]
        return ["-m", "featinv_fast", "train", "--config", "recipe.toml", "--quiet", *sets]

    return make


@pytest.fixture
def environment():
    """Of processes that meet on this machine: one thread each, no other network."""
    own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {"OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}


@pytest.fixture
def pair(folder, command, environment):
    """`pair(*changes)`: two processes as a launcher starts them, the main one first; ended with the test."""
    started = []

    def start(*changes):
        port = free_port()
        for rank in ("0", "1"):
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            started.append(
                subprocess.Popen(
                    [sys.executable, *command(*changes)],
                    cwd=folder,
                    env=environment | told,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return started[-2:]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def launched(folder, command, environment):
    """`launched(*changes)`: what became of two processes that accelerate started."""

    def launch(*changes):
        launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
        launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]
        return subprocess.run(
            [sys.executable, *launcher, *command(*changes)],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    return launch


@pytest.fixture
def two(monkeypatch):
    """This process is the main one of two, which have not met."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def steps_of(pattern, folder):
    """The steps in the names of such files of the run."""
    return sorted(int(re.findall(r"\d+", path.name)[0]) for path in (folder / "run").glob(pattern))


def alone(folder, steps):
    """The same recipe in one process: its log and its result."""
    changes = ["folder=alone", "out=alone.safetensors", f"training.steps={steps}"]
    made = run(folder / "recipe.toml", root=folder, changes=changes, progress=False)
    return read_log(folder / "alone"), load_file(made)


def require_same(folder, steps):
    rows, weights = alone(folder, steps)
    found = read_log(folder / "run")
    assert [row["step"] for row in found] == list(range(1, steps + 1))
    for row, expected in zip(found, rows, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)
    together = load_file(folder / "featinv.safetensors")
    assert together.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-5)


def test_two_processes_train_what_one_does_also_where_they_were_stopped(folder, pair, launched):
    main, other = pair("training.steps=100000")
    end = time.monotonic() + 120
    while not steps_of("checkpoints/*.pt", folder) and main.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    main.terminate()
    (out, _), (_, err) = (process.communicate(timeout=120) for process in (main, other))
    assert (main.returncode, other.returncode, out) == (143, 1, ""), err
    assert "another process of this training has ended" in err
    assert "goes on from its last checkpoint" in err
    assert not (folder / "featinv.safetensors").exists()

    steps = 2 + max(steps_of("checkpoints/*.pt", folder))
    done = launched(f"training.steps={steps}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "featinv.safetensors\n"
    require_same(folder, steps)
    assert steps_of("checkpoints/*", folder) == [steps - 2, steps]
    assert steps_of("images/*", folder) == sorted({*range(4, steps, 4), steps})
    assert len(list((folder / "run" / "tensorboard").iterdir())) == 2  # one of each start
    assert not list(folder.rglob("*.partial*"))
    assert not (folder / "run" / ".lock").exists()

    run(folder / "recipe.toml", root=folder, changes=[f"training.steps={steps + 1}"], progress=False)
    require_same(folder, steps + 1)  # one process goes on with what two began


def test_a_batch_that_does_not_divide_is_refused_by_the_main_process(folder, pair):
    main, other = pair("training.batch_size=3")
    (out, err), (_, said) = (process.communicate(timeout=120) for process in (main, other))
    assert (main.returncode, other.returncode, out) == (1, 1, "")
    assert "given: training.batch_size = 3, 2 processes" in err
    assert "expected: a multiple of 2" in err
    assert "remedy: set training.batch_size = 4" in err
    assert "the main process could not go on" in said
    assert not (folder / "run").exists()


def normal(count, generator):
    return diffusion.normal(torch.zeros(count, 4, 3, 3), generator)


DRAWS = {
    "noise": normal,
    "times": diffusion.random_times,
    "cubic times": lambda count, generator: diffusion.random_times(count, generator, Times.CUBIC),
    "dropped": lambda count, generator: drop_mask(count, 0.5, generator),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_share_draws_what_its_items_have_in_the_whole_batch(draw):
    whole = randomness.generator(3, "noise", 5)
    expected = [draw(12, whole), draw(12, whole)]
    together = [torch.empty_like(one) for one in expected]
    for first in range(3):
        share = Share(first, 3)
        generator = randomness.generator(3, "noise", 5, share=share)
        for one in together:  # the second draw also begins where that of the whole batch does
            one[share.places] = draw(4, generator)
    assert all(torch.equal(one, other) for one, other in zip(together, expected, strict=True))
    assert not torch.equal(*expected)


def test_shares_of_a_batch_are_the_batch():
    draws = randomness.draws(7, 4, 12, 10)
    parts = [draws[Share(first, 4).places] for first in range(4)]
    assert {len(part) for part in parts} == {3}
    assert np.array_equal(np.sort(np.concatenate(parts)), np.sort(draws))
    assert np.array_equal(draws[Share().places], draws)


@pytest.mark.parametrize("share", [0.1, 0.125, 0.25, 0.3, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("batch", [2, 4, 8, 24])
def test_parts_of_a_batch_are_refused_where_shares_have_another_number(share, batch):
    found = uneven_parts({"own_path.share": share, "perceptual.share": None}, batch, 2)
    places = np.arange(batch) < math.ceil(share * batch)  # the first items, in one process
    counts = {int(places[Share(first, 2).places].sum()) for first in (0, 1)}
    assert bool(found) == (counts != {math.ceil(share * (batch // 2))})
    assert all("own_path.share" in reason for reason in found)


def test_what_cannot_be_shared_is_named(two, line, line_config):
    with pytest.raises(ConfigError) as caught:
        _require_shares(dataclasses.replace(line_config, batch_size=4, workers=2), line())
    for reason in ("2 processes", "Dropout", "BatchNorm1d", "workers = 2"):
        assert reason in caught.value.given
    with pytest.raises(ConfigError, match="equal shares"):
        processes.require_divisible(7)
    processes.require_divisible(8)


def test_a_process_without_a_gpu_of_its_own_is_refused(two, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(BackendUnavailableError, match="more processes than GPUs") as caught:
        processes.start(torch.device("cuda"))
    assert "2 GPUs" in caught.value.given


@pytest.mark.parametrize(("count", "kind"), [(2, "MULTI_CPU"), (1, "DEEPSPEED")])
def test_processes_that_were_started_otherwise_are_refused(line_config, monkeypatch, count, kind):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    made = SimpleNamespace(num_processes=count, distributed_type=SimpleNamespace(value=kind))
    monkeypatch.setattr(accelerate, "Accelerator", lambda **_: made)
    with pytest.raises(ConfigError, match="does not know") as caught:
        make_accelerator(line_config)
    assert caught.value.given == f"{count} processes, {kind}"
    assert "torchrun" in caught.value.remedy


def test_a_missing_accelerate_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingPackageError, match=r"featinv-fast\[train\]"):
        processes.accelerate_module("accelerate")


def test_one_process_needs_no_others(line, line_config, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (processes.count(), processes.is_main(), processes.share()) == (1, True, Share())
    assert processes.averaged({"loss": 0.5}, torch.device("cpu")) == {"loss": 0.5}
    with pytest.raises(RuntimeError, match="gloo"), processes.others_may_end():  # not what it would mean with others
        raise RuntimeError("gloo")
    _require_shares(line_config, line())
