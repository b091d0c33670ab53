"""The support table, and what compiling ahead of time is told: recorded launches and their specialisations."""

import pytest
import torch

from featinv_kernels import OPS, Case
from featinv_kernels.ahead_of_time import launches_of, specialisation, specialisation_key
from featinv_kernels.support import TABLE, specialisations

pytest.importorskip("triton", reason="triton is optional")


def launch_of(name, **case):
    (launch,) = launches_of(OPS[name], Case(label="a", **case))
    return launch


def test_the_committed_table_lists_every_specialisation():
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    listed = [tuple(cell.strip() for cell in line.split("|")[1:7]) for line in lines if line.startswith("| ")][2:]
    # If this fails, run `python -m featinv_kernels.support` and commit what it wrote.
    assert listed == [found.row for found in specialisations()]


def test_no_kernel_of_the_table_spills():
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    cells = [cell for line in lines if line.startswith("| ") for cell in line.split("|")[7:12]][10:]
    numbers = [[int(number) for number in cell.split("/")] for cell in cells]
    assert numbers
    assert all(stack == 0 for _, _, stack in numbers)


def test_the_table_names_every_op():
    assert {found.op.name for found in specialisations()} == set(OPS)


def test_specialised_as_triton_does():
    launch = launch_of("geglu", shape=(32, 1, 50), dtype=torch.bfloat16)
    types, values, aligned = specialisation(launch)
    assert types == {
        "p_x": "*bf16",
        "p_y": "*bf16",
        "rows": "i32",
        "width": "i32",
        "BLOCK_ROWS": "constexpr",
        "BLOCK_COLUMNS": "constexpr",
    }
    assert values == {"BLOCK_ROWS": 4, "BLOCK_COLUMNS": 256}
    assert aligned == ("p_x", "p_y", "rows")


def test_ones_and_absent_tensors_are_compile_time_values():
    types, values, _ = specialisation(launch_of("sampler_step", shape=(1,)))
    assert {name: values[name] for name in ("p_noise", "p_history", "size")} == {
        "p_noise": None,
        "p_history": None,
        "size": 1,
    }
    assert types["p_noise"] == types["size"] == "constexpr"


def test_numbers_beyond_32_bits_and_views_off_the_alignment():
    launch = launch_of("to_uint8", shape=(2, 3, 20_000, 30_000))
    types, _, _ = specialisation(launch)
    assert types["size"] == "i32"
    views = torch.empty(2, 16, 3, 1, 40, dtype=torch.float16, device="meta").unbind(2)
    assert [view.storage_offset() * 2 % 16 for view in views] == [0, 0, 0]
    shifted = torch.empty(129, device="meta")[1:]
    launch.arguments["p_image"] = shifted
    assert "p_image" not in specialisation(launch)[2]


def test_cases_that_run_the_same_kernel_share_a_key():
    first, same, other = (
        launch_of("geglu", shape=(2, rows, 1280), dtype=dtype)
        for rows, dtype in ((1024, torch.float16), (512, torch.float16), (512, torch.bfloat16))
    )
    assert specialisation_key(first) == specialisation_key(same) != specialisation_key(other)


def test_recording_runs_nothing():
    op = OPS["group_norm_silu"]
    many_tiles = next(case for case in op.cases if case.label == "decoder_256x256x128")
    launches = launches_of(op, many_tiles)
    assert [launch.kernel.__name__ for launch in launches] == [
        f"group_norm_{part}_kernel" for part in ("parts", "merge", "apply")
    ]
    assert launches[0].grid == (512, 2)
    assert all(tensor.device.type == "meta" for tensor in launches[0].arguments.values() if torch.is_tensor(tensor))
