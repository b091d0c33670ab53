"""Threads that share the work on a batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from featinv_fast.config import Precision
from featinv_fast.errors import ConfigError
from featinv_fast.train.average import learning
from featinv_fast.train.trainer import train


@pytest.fixture
def clean(line):
    """`clean()`: the tiny objective without layers that draw or keep statistics, and without noise."""

    def make(*, noise=0.0):
        objective = line()
        objective.network = nn.Sequential(objective.network[0], nn.Tanh(), objective.network[3])
        objective.noises = []

        def recorded(batch, generator, average):
            objective.noises.append(generator.initial_seed())
            target = objective.frozen(batch["x"]) + noise * torch.randn(len(batch["x"]), 1, generator=generator)
            return {"loss": (objective.network(batch["x"]) - target).square().mean()}

        objective.forward = recorded
        return objective

    return make


def weights(objective):
    return {name: p.detach().clone() for name, p in learning(objective).items()}


def test_parts_are_one_batch(clean, line_config, tmp_path):
    found = []
    for workers in (1, 2):
        objective = clean()
        config = dataclasses.replace(line_config, batch_size=4, workers=workers)
        train(objective, config, tmp_path / str(workers), progress=False)
        assert len(objective.noises) == workers * config.steps * config.accumulation
        found.append(weights(objective))
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-5, atol=1e-7)


def test_every_part_has_noise_of_its_own_and_a_second_run_is_the_same(clean, line_config, tmp_path):
    config = dataclasses.replace(line_config, batch_size=4, workers=4)
    found = []
    for name in ("a", "b"):
        objective = clean(noise=0.1)
        train(objective, config, tmp_path / name, progress=False)
        assert len(set(objective.noises)) == len(objective.noises)
        found.append(weights(objective))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_an_interrupted_run_ends_with_the_same_weights(clean, line_config, tmp_path):
    config = dataclasses.replace(line_config, batch_size=4, workers=2, checkpoint_every=3)
    whole, halved = clean(noise=0.1), clean(noise=0.1)
    train(whole, config, tmp_path / "whole", progress=False)
    load, halved.calls = halved.load, 0

    def stopped(draws):
        halved.calls += 1
        if halved.calls == 6 * config.accumulation:
            raise KeyboardInterrupt
        return load(draws)

    halved.load = stopped
    with pytest.raises(KeyboardInterrupt):
        train(halved, config, tmp_path / "halved", progress=False)
    resumed = clean(noise=0.1)
    train(resumed, config, tmp_path / "halved", progress=False)
    assert all(torch.equal(p, weights(resumed)[name]) for name, p in weights(whole).items())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({}, "Dropout"), ({}, "BatchNorm1d"), ({"batch_size": 5}, "no multiple"), ({"precision": Precision.FP16}, "fp16")],
)
def test_what_cannot_be_shared_is_named(line, line_config, tmp_path, changes, reason):
    config = dataclasses.replace(line_config, **{"batch_size": 4, "workers": 2} | changes)
    with pytest.raises(ConfigError, match=reason):
        train(line(), config, tmp_path, progress=False)
