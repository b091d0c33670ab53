"""The training loop: order, rates, averages, logs, and going on where a run stopped."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from featinv_fast.config import Precision
from featinv_fast.engine.lock import exclusive_lock
from featinv_fast.errors import BackendUnavailableError, ConfigError, EngineLockedError, TrainingError
from featinv_fast.train import randomness
from featinv_fast.train.average import Average
from featinv_fast.train.logs import LOG, read_log
from featinv_fast.train.settings import RateShape
from featinv_fast.train.trainer import learning_rate, train


def weights(objective):
    return torch.cat([p.flatten() for p in objective.parameters()])


def test_the_loss_falls_and_frozen_weights_stay(line, line_config, tmp_path):
    objective = line()
    before = weights(objective.frozen).clone()
    train(objective, dataclasses.replace(line_config, steps=200, log_every=20), tmp_path, progress=False)
    losses = [row["loss"] for row in read_log(tmp_path)]
    assert losses[-1] < 0.75 * losses[0]
    assert torch.equal(weights(objective.frozen), before)
    assert not objective.training


def test_a_second_run_is_the_same_and_another_seed_is_not(line, line_config, tmp_path):
    results = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        objective = line()
        train(objective, dataclasses.replace(line_config, seed=seed), tmp_path / name, progress=False)
        results.append(weights(objective))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_global_generator_is_left_alone(line, line_config, tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(line(), line_config, tmp_path, progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_every_pass_shows_every_item_once_and_batches_follow_the_seed(line, line_config, tmp_path):
    objective = line()
    config = dataclasses.replace(line_config, steps=10, batch_size=3, accumulation=1)
    train(objective, config, tmp_path, progress=False)
    draws = np.concatenate(objective.loaded)
    assert len(objective.loaded) == 10
    for number in range(3):
        assert sorted(draws[number * 10 : number * 10 + 10] - number * 10) == list(range(10))
    assert (draws[:10] != draws[10:20] - 10).any()
    assert np.array_equal(randomness.draws(7, 4, 3, 10), draws[12:15])
    assert not np.array_equal(randomness.draws(8, 0, 10, 10), randomness.draws(7, 0, 10, 10))


def test_accumulated_batches_are_one_large_batch(line, tmp_path, line_config):
    class Plain(line):
        def forward(self, batch, *_):
            return {"loss": (self.network[0](batch["x"]).sum(dim=1) - batch["x"].sum(dim=1)).square().mean()}

    results = []
    for name, size, parts in (("one", 6, 1), ("many", 2, 3)):
        objective = Plain()
        config = dataclasses.replace(line_config, batch_size=size, accumulation=parts, clip_norm=None, ema_decay=None)
        train(objective, config, tmp_path / name, progress=False)
        results.append((weights(objective), [row["loss"] for row in read_log(tmp_path / name)]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)


def test_the_learning_rate_grows_and_falls(line_config):
    config = dataclasses.replace(line_config, steps=11, warmup_steps=3, learning_rate=0.8)
    rates = [learning_rate(config, step) for step in range(11)]
    assert rates[:3] == pytest.approx([0.8 / 3, 1.6 / 3, 0.8])
    assert rates[3] == pytest.approx(0.8)
    assert rates[7] == pytest.approx(0.4)
    assert rates[10] == pytest.approx(0.4 * (1 + math.cos(math.pi * 7 / 8)))
    constant = dataclasses.replace(config, rate_shape=RateShape.CONSTANT)
    assert learning_rate(constant, 10) == 0.8


def test_the_average_follows_the_weights(line):
    objective = line()
    average = Average(objective, 0.5)
    assert not any(name.startswith("frozen") for name in average.weights)
    start = objective.network[0].bias.detach().clone()
    with torch.no_grad():
        objective.network[0].bias += 1.0
    average.update()  # decay 1/10 at first
    torch.testing.assert_close(average.weights["network.0.bias"], start + 0.9)
    with average.in_place():
        torch.testing.assert_close(objective.network[0].bias.detach(), start + 0.9)
    torch.testing.assert_close(objective.network[0].bias.detach(), start + 1.0)
    for _ in range(20):
        average.update()
    torch.testing.assert_close(average.weights["network.0.bias"], start + 1.0)


def test_the_result_is_the_average(line, line_config, tmp_path):
    objective = line()
    train(objective, line_config, tmp_path, progress=False)
    state = torch.load(tmp_path / "checkpoints" / "step_000000012.pt", weights_only=True)
    assert torch.equal(objective.network[0].weight, state["average"]["weights"]["network.0.weight"])
    assert not torch.equal(objective.network[0].weight, state["weights"]["network.0.weight"])


def test_logs_images_and_checkpoints(line, line_config, tmp_path):
    train(line(), line_config, tmp_path, progress=False)
    rows = read_log(tmp_path)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    for row in rows:
        assert row["twice"] == pytest.approx(2 * row["loss"])
        assert row["gradient_norm"] > 0
        assert row["learning_rate"] == learning_rate(line_config, int(row["step"]) - 1)
    assert [path.name for path in sorted((tmp_path / "images").iterdir())] == ["000000006.png", "000000012.png"]
    grid = np.asarray(Image.open(tmp_path / "images" / "000000012.png"))
    assert grid.shape == (8, 12, 3)
    assert tuple(grid[0, 0]) == (0, *grid[0, 0][1:])
    assert grid[-1, -1, 2] == 255
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step_000000009.pt", "step_000000012.pt"]


@pytest.mark.parametrize("stopped", [False, True], ids=["at once", "stopped and gone on"])
def test_tensorboard_shows_what_the_csv_holds(line, line_config, tmp_path, stopped):
    train(line(), line_config, tmp_path, progress=False)
    if stopped:  # after rows that the last checkpoint does not know
        (tmp_path / "checkpoints" / "step_000000012.pt").unlink()
        train(line(), line_config, tmp_path, progress=False)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = read_log(tmp_path)
    assert sorted(board.Tags()["scalars"]) == ["gradient_norm", "learning_rate", "loss", "twice"]
    for name in board.Tags()["scalars"]:
        shown = [(event.step, event.value) for event in board.Scalars(name)]
        assert [step for step, _ in shown] == [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
        assert [value for _, value in shown] == pytest.approx([row[name] for row in rows], rel=1e-6)


def test_a_finished_run_is_not_repeated(line, line_config, tmp_path):
    first = line()
    train(first, line_config, tmp_path, progress=False)
    again = line()
    train(again, line_config, tmp_path, progress=False)
    assert again.forwards == 0
    assert torch.equal(weights(first), weights(again))


def test_a_finished_run_can_be_lengthened_bit_for_bit(line, line_config, tmp_path, caplog):
    config = dataclasses.replace(line_config, rate_shape=RateShape.CONSTANT, steps=11)
    results = []
    for name, lengths in (("whole", [11]), ("parts", [4, 7, 11])):
        for steps in lengths:
            objective = line()
            remarks = train(objective, dataclasses.replace(config, steps=steps), tmp_path / name, progress=False)
            assert remarks == ()
        results.append(weights(objective))
    assert torch.equal(*results)
    assert (tmp_path / "whole" / LOG).read_text() == (tmp_path / "parts" / LOG).read_text()
    assert caplog.text == ""


def test_a_rate_that_fell_towards_another_end_is_said(line, line_config, tmp_path, caplog):
    train(line(), dataclasses.replace(line_config, steps=3), tmp_path, progress=False)  # the warm-up alone
    assert train(line(), dataclasses.replace(line_config, steps=6), tmp_path, progress=False) == ()
    for _ in range(2):  # it stays with the run
        remarks = train(line(), line_config, tmp_path, progress=False)
        assert remarks == ("the first 6 steps had the learning rates of a run of 6",)
    assert caplog.text.count("goes on to 12 steps: the first 6 steps") == 1


def test_a_run_is_not_shortened_below_what_it_has_done(line, line_config, tmp_path):
    train(line(), line_config, tmp_path, progress=False)
    with pytest.raises(ConfigError, match="more steps already") as caught:
        train(line(), dataclasses.replace(line_config, steps=11), tmp_path, progress=False)
    assert caught.value.given == "training.steps = 11"
    assert caught.value.expected.startswith("12 or more")


def test_a_damaged_checkpoint_falls_back_to_the_one_before(line, line_config, tmp_path, caplog):
    whole = line()
    train(whole, line_config, tmp_path, progress=False)
    last = tmp_path / "checkpoints" / "step_000000012.pt"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    again = line()
    train(again, line_config, tmp_path, progress=False)
    assert "damaged" in caplog.text
    assert again.forwards == 2 * 3
    assert torch.equal(weights(whole), weights(again))


def test_checkpoints_that_are_all_damaged_stop_the_run(line, line_config, tmp_path):
    train(line(), line_config, tmp_path, progress=False)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"PK")
    with pytest.raises(TrainingError, match="no checkpoint of this run"):
        train(line(), line_config, tmp_path, progress=False)


def test_a_checkpoint_that_holds_code_is_not_run(line, line_config, tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    (tmp_path / "checkpoints").mkdir()
    torch.save({"step": Evil()}, tmp_path / "checkpoints" / "step_000000003.pt")
    with pytest.raises(TrainingError):
        train(line(), line_config, tmp_path, progress=False)
    assert not (tmp_path / "ran").exists()


def test_another_run_in_the_same_folder_is_refused(line, line_config, tmp_path):
    train(line(), line_config, tmp_path, identity={"data": {"size": 3}}, progress=False)
    other = dataclasses.replace(line_config, learning_rate=0.02, log_every=5)
    with pytest.raises(ConfigError) as caught:
        train(line(), other, tmp_path, identity={"data": {"size": 4}}, progress=False)
    assert caught.value.given == {"data.size": "4", "training.learning_rate": "0.02"}
    assert caught.value.expected == {"data.size": "3", "training.learning_rate": "0.01"}


def test_two_trainers_in_one_folder(line, line_config, tmp_path):
    with exclusive_lock(tmp_path / ".lock"), pytest.raises(EngineLockedError, match="another training is writing"):
        train(line(), line_config, tmp_path, progress=False)
    train(line(), line_config, tmp_path, progress=False)


@pytest.mark.parametrize("breaks_at", [9, 8])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_before(line, line_config, tmp_path, breaks_at):
    with pytest.raises(TrainingError, match="not finite"):
        train(line(breaks_at=breaks_at), line_config, tmp_path, progress=False)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000000003.pt"]


def test_a_half_written_row_of_the_log_is_dropped(line, line_config, tmp_path):
    train(line(), line_config, tmp_path, progress=False)
    expected = (tmp_path / LOG).read_text()
    (tmp_path / "checkpoints" / "step_000000012.pt").unlink()
    (tmp_path / LOG).write_text(expected[:-7])
    train(line(), line_config, tmp_path, progress=False)
    assert (tmp_path / LOG).read_text() == expected


def test_a_missing_gpu_is_named(line, line_config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match="no GPU"):
        train(line(), dataclasses.replace(line_config, device="cuda"), tmp_path, progress=False)


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP32])
def test_precisions_and_memory_orders_train(line, line_config, tmp_path, precision):
    config = dataclasses.replace(line_config, precision=precision, steps=100, channels_last=True)
    objective = line()
    train(objective, config, tmp_path, progress=False)
    losses = [row["loss"] for row in read_log(tmp_path)]
    assert losses[-1] < losses[0]
    assert objective.network[0].weight.dtype is torch.float32
