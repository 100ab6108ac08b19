"""Seeds decide everything, and streams do not disturb each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from reproductions.lab.seeding import generator, init_model, numpy_generator, stream_seed


@settings(deadline=None)
@given(st.integers(), st.text(), st.integers(), st.text())
def test_streams_coincide_only_if_seed_and_name_do(seed: int, stream: str, other_seed: int, other_stream: str) -> None:
    same = (seed, stream) == (other_seed, other_stream)
    assert (stream_seed(seed, stream) == stream_seed(other_seed, other_stream)) == same


def test_a_stream_never_changes_between_versions_of_this_package() -> None:
    assert stream_seed(101, "batches") == 2961396621810700670


def test_a_generator_repeats_itself() -> None:
    assert torch.equal(torch.rand(5, generator=generator(1, "a")), torch.rand(5, generator=generator(1, "a")))
    assert (numpy_generator(1, "a").random(5) == numpy_generator(1, "a").random(5)).all()


def test_two_streams_of_one_seed_are_uncorrelated() -> None:
    draws = torch.stack([torch.randn(10_000, generator=generator(1, name)) for name in ("a", "b")])
    assert abs(draws.corrcoef()[0, 1]) < 0.04


def test_a_model_depends_on_its_seed_alone() -> None:
    torch.manual_seed(5)
    first = init_model(lambda: nn.Linear(4, 4), 1)
    torch.manual_seed(6)
    second = init_model(lambda: nn.Linear(4, 4), 1)
    third = init_model(lambda: nn.Linear(4, 4), 2)
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, third.weight)


def test_building_a_model_leaves_the_global_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    init_model(lambda: nn.Linear(4, 4), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_is_restored_even_if_the_factory_fails() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        init_model(lambda: 1 // 0, 1)
    assert torch.equal(torch.get_rng_state(), before)
