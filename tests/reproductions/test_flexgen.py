"""FlexGen: reading from a file changes no token, four bits are four bits, and the plan obeys its machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from reproductions.lab.characters import next_token_loss  # noqa: E402
from reproductions.lab.seeding import generator, init_model, numpy_generator  # noqa: E402
from reproductions.lab.transformer import TinyGPT  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

flexgen = load("background/transformer-architecture/flexgen.py")
SIZES = flexgen.Settings()


@pytest.fixture
def model() -> Any:
    """An untrained model of 3 blocks and 70 tokens, without gradients."""
    return init_model(lambda: TinyGPT(70, 64, 3, 4, 24, token_shift=True), 0).requires_grad_(requires_grad=False)


def prompts(batches: int) -> list[Any]:
    return list(torch.randint(0, 70, (batches, 2, 8), generator=generator(0, "prompts")))


def weight_file(path: Path, blocks: Any) -> Any:
    path.write_bytes(nn.utils.parameters_to_vector(blocks.parameters()).numpy().tobytes())
    return flexgen.WeightFile(path.open("rb", buffering=0), blocks[0])


@pytest.mark.parametrize("batches", [1, 3])
def test_a_block_that_reads_its_layers_writes_what_the_whole_model_writes(
    model: Any, tmp_path: Path, batches: int
) -> None:
    weights = weight_file(tmp_path / "weights", model.blocks)
    written = flexgen.write(model, prompts(batches), 5, weights.load)

    for prompt, tokens in zip(prompts(batches), written, strict=True):
        assert torch.equal(tokens, flexgen.write_in_memory(model, prompt, 5))
    assert weights.bytes_read == 5 * (tmp_path / "weights").stat().st_size  # once per token, whatever the block


def test_row_by_row_reads_the_file_once_more_for_every_batch(model: Any, tmp_path: Path) -> None:
    weights = weight_file(tmp_path / "weights", model.blocks)
    for prompt in prompts(3):
        flexgen.write(model, [prompt], 5, weights.load)

    assert weights.bytes_read == 3 * 5 * (tmp_path / "weights").stat().st_size


def test_what_is_computed_comes_from_the_file(model: Any, tmp_path: Path) -> None:
    reversed_blocks = nn.ModuleList(reversed(model.blocks))
    other = weight_file(tmp_path / "other", reversed_blocks)

    assert not torch.equal(
        flexgen.write(model, prompts(1), 8, other.load)[0], flexgen.write_in_memory(model, prompts(1)[0], 8)
    )


def test_without_compression_the_loss_is_that_of_the_model(model: Any) -> None:
    rows = torch.randint(0, 70, (6, 20), generator=generator(0, "rows"))

    loss = flexgen.held_out_loss(model, rows, nn.Identity(), 4)
    assert loss == pytest.approx(float(next_token_loss(model, rows)), rel=1e-5)
    assert flexgen.held_out_loss(model, rows, flexgen.in_groups, 4) != pytest.approx(loss, rel=1e-5)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_group_keeps_its_ends_and_moves_no_number_by_more_than_half_a_step(seed: int, scale: float) -> None:
    x = scale * torch.randn(5, 150, generator=generator(seed), dtype=torch.float64)
    packed = flexgen.in_groups(x)

    for before, after in zip(x.split(64, 1), packed.split(64, 1), strict=True):
        step = (before.amax(1) - before.amin(1)) / 15
        assert ((after - before).abs().amax(1) <= step / 2 * (1 + 1e-9)).all()
        torch.testing.assert_close(after.amin(1), before.amin(1))
        torch.testing.assert_close(after.amax(1), before.amax(1))
        assert all(len(row.unique()) <= 16 for row in after)
    torch.testing.assert_close(flexgen.in_groups(packed), packed)


def test_equal_numbers_stay_as_they_are() -> None:
    x = torch.full((2, 64), 0.3)

    assert torch.equal(flexgen.in_groups(x), x)


def test_an_extreme_number_harms_its_own_group_only() -> None:
    x = torch.randn(1, 128, generator=generator(0, "x"))
    x[0, 0] = 1000.0
    errors = {pack: (pack(x) - x)[0, 64:].abs().max() for pack in (flexgen.in_groups, flexgen.as_a_whole)}

    assert errors[flexgen.in_groups] < 0.2
    assert errors[flexgen.as_a_whole] > 1


def test_matrices_of_the_compressed_copy_have_sixteen_values_per_group_of_output_channels(model: Any) -> None:
    before = {name: p.clone() for name, p in model.named_parameters()}
    packed = dict(flexgen.with_packed_weights(model, flexgen.in_groups).named_parameters())

    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        if p.ndim < 2:
            assert torch.equal(packed[name], p)
            continue
        outputs_last = packed[name] if "embedding" in name else packed[name].T
        assert all(len(row.unique()) <= 16 for part in outputs_last.split(64, 1) for row in part)
        assert not torch.equal(packed[name], p)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), n_b=st.sampled_from(SIZES.planned_n_b))
def test_the_linear_program_fits_its_machine_and_no_other_plan_is_faster(seed: int, n_b: int) -> None:
    rng = numpy_generator(seed)
    machine = flexgen.random_machine(rng)
    w, c = flexgen.linear_program(machine, n_b, SIZES)
    others = rng.dirichlet([0.4, 0.4, 0.4], (2, 2000))

    assert w.sum() == pytest.approx(1)
    assert c.sum() == pytest.approx(1)
    assert min(*w, *c) >= -1e-9
    best = flexgen.throughput(w, c, machine, n_b, SIZES)
    assert best > 0
    assert flexgen.throughput(*others, machine, n_b, SIZES).max() <= best * (1 + 1e-9)
    assert flexgen.throughput(*flexgen.fastest_first(machine, n_b, SIZES), machine, n_b, SIZES) <= best * (1 + 1e-9)


def test_the_slowest_part_of_a_step_decides() -> None:
    machine = flexgen.Machine((40.0, 50.0, 1000.0), gpu=1000.0, cpu=100.0, disk=2.0, link=10.0)
    w, c = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])  # of 60 GB and of 4 * 6 GB

    # disk (15 + 6) / 2 s, link 30 / 10 s, compute (240 + 6) / 1000 + 18 / 100 s; 4 * 8 tokens
    assert flexgen.throughput(w, c, machine, 4, SIZES) == pytest.approx(32 / 10.5)
    quick_disk = machine._replace(disk=1e9)
    assert flexgen.throughput(w, c, quick_disk, 4, SIZES) == pytest.approx(32 / 3)
    assert flexgen.throughput(w, c, quick_disk._replace(link=1e9), 4, SIZES) == pytest.approx(32 / 0.426)
    assert flexgen.throughput(w, c, machine._replace(room=(35.0, 50.0, 1000.0)), 4, SIZES) == 0


def test_the_fastest_memory_is_filled_first_and_with_weights() -> None:
    machine = flexgen.Machine((40.0, 32.0, 1000.0), gpu=1.0, cpu=1.0, disk=1.0, link=1.0)
    w, c = flexgen.fastest_first(machine, 4, SIZES)

    np.testing.assert_allclose(w, [40 / 60, 20 / 60, 0])
    np.testing.assert_allclose(c, [0, 0.5, 0.5])
