"""Multi-query attention against PyTorch's own, decoding against a full pass, and what the counter of reads sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

mqa = load("background/transformer-architecture/mqa.py")
ARMS = sorted(mqa.ARMS)
SMALL = mqa.Settings(length=12, decoded=12)


def randn(*shape: int, stream: str) -> Tensor:
    """Normal draws in float64 that `stream` decides."""
    draws: Tensor = torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)
    return draws


@pytest.mark.parametrize("g", [1, 2, 8])
def test_reading_a_cache_gives_every_head_what_attention_to_its_own_copy_would(g: int) -> None:
    q, K, V = randn(3, 8, 1, 4, stream="q"), randn(3, g, 9, 4, stream="K"), randn(3, g, 9, 4, stream="V")
    expected = F.scaled_dot_product_attention(q, K.repeat_interleave(8 // g, 1), V.repeat_interleave(8 // g, 1))

    torch.testing.assert_close(mqa.read(q, K, V), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("arm", ARMS)
def test_decoding_gives_the_logits_of_a_full_pass_and_keeps_every_position(arm: str) -> None:
    model = init_model(lambda: mqa.language_model(20, mqa.ARMS[arm], SMALL), 0).double()

    with torch.no_grad():
        tokens, logits, caches = mqa.decode(model, 12, generator(0, "samples"))
        torch.testing.assert_close(logits, model(tokens), atol=1e-12, rtol=0)

    heads = mqa.ARMS[arm]
    assert len(set(tokens[0].tolist())) > 3  # a text, not one token over and over
    assert {part.shape for cache in caches for part in cache} == {(1, heads.g, 12, heads.k)}


def test_a_spoilt_cache_is_noticed() -> None:
    layer = init_model(lambda: mqa.CachedAttention(16, mqa.ARMS["mqa"]), 0).double()
    x = randn(2, 5, 16, stream="x")
    cache = layer.empty(x)
    for t in range(4):
        _, cache = layer.step(x[:, t : t + 1], cache)
    kept, _ = layer.step(x[:, 4:], cache)
    spoilt, _ = layer.step(x[:, 4:], (cache[0][:, :, 1:], cache[1][:, :, 1:]))

    torch.testing.assert_close(kept, layer(x)[:, 4:], atol=1e-12, rtol=0)
    assert (spoilt - kept).abs().max() > 1e-4


def test_all_arms_have_the_same_number_of_parameters() -> None:
    settings = mqa.Settings()

    assert len({count_parameters(mqa.language_model(90, heads, settings)) for heads in mqa.ARMS.values()}) == 1


def test_the_counter_of_reads_counts_copies_and_no_views() -> None:
    key, shared = torch.ones(2, 8, 5, 4), torch.ones(2, 1, 5, 4)
    with mqa.ReadCounter() as views:
        key.transpose(2, 3).reshape(16, 4, 5)
        shared.expand(2, 8, 5, 4)
    with mqa.ReadCounter() as copied:
        key @ shared.transpose(2, 3)

    assert views.elements == 0
    assert copied.elements == 2 * key.numel() + 8 * shared.numel()  # both factors, and what expanding copied


@pytest.mark.parametrize(("arm", "kept_heads"), [("mha", 8), ("mqa", 1)])
def test_traffic_is_keys_and_values_once_and_queries_and_scores_twice(arm: str, kept_heads: int) -> None:
    multiply_adds, elements = mqa.traffic(mqa.ARMS[arm], S=7, B=3)

    assert multiply_adds == 3 * 2 * 8 * 7 * 8
    assert elements == 3 * (2 * kept_heads * 7 * 8 + 2 * 8 * 8 + 2 * 8 * 7)
