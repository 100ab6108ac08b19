"""The band computation is dense attention under a mask, and a whole layer is that of transformers."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from reproductions.lab.attention import MultiHeadAttention  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.optional import reference  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

longformer = load("llm/long-context/longformer.py")


def randn(*shape: int, stream: str) -> Tensor:
    """Normal draws in float64 that `stream` decides."""
    draws: Tensor = torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)
    return draws


@settings(deadline=None, max_examples=25)  # the first call of an operation in torch is slow
@given(half=st.integers(1, 5), blocks=st.integers(1, 6), g=st.integers(0, 3))
def test_every_token_attends_to_its_window_and_the_global_tokens(half: int, blocks: int, g: int) -> None:
    n = half * blocks
    g = min(g, n)
    q, k, v = (randn(1, 2, n, 4, stream=name) for name in "qkv")
    result = longformer.banded_attention(q, k, v, 2 * half, g)

    for i in range(g, n):  # rows of global tokens are computed elsewhere
        seen = [j for j in range(n) if abs(i - j) <= half or j < g]
        weights = (k[:, :, seen] @ q[:, :, i, :, None] / 2).softmax(2)  # (1, 2, seen, 1)
        torch.testing.assert_close(result[:, :, i], (weights * v[:, :, seen]).sum(2), atol=1e-12, rtol=0)


def test_the_mask_is_the_pattern_of_the_paper() -> None:
    mask = longformer.band_mask(6, 2, 1)
    drawn = ["".join(".x"[seen] for seen in row) for row in mask.int().tolist()]

    assert drawn == ["xxxxxx", "xxx...", "xxxx..", "x.xxx.", "x..xxx", "x...xx"]


@pytest.mark.parametrize("g", [0, 1, 2])
def test_a_layer_is_longformer_self_attention_of_transformers(g: int) -> None:
    library = reference("transformers.models.longformer.modeling_longformer")
    config = library.LongformerConfig(
        hidden_size=16, num_attention_heads=2, attention_window=[8], attention_probs_dropout_prob=0.0
    )
    theirs = library.LongformerSelfAttention(config, layer_id=0).eval()
    ours = longformer.WindowAttention(init_model(lambda: MultiHeadAttention(16, 2), 0), w=8, g=g)
    ours.local.o_proj = nn.Identity()
    for name, layer in (("", ours.local), ("_global", ours.of_global)):
        if layer is None:
            continue
        for own, other in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            getattr(layer, own).weight.data += 0.3 * torch.randn(16, 16, generator=generator(0, name + own))
            getattr(theirs, other + name).load_state_dict(getattr(layer, own).state_dict())
    x = randn(2, 32, 16, stream="x").float()
    mask = torch.zeros(2, 32)
    mask[:, :g] = 10_000.0  # theirs marks global tokens so
    with torch.no_grad():
        expected = theirs(
            x,
            attention_mask=mask,
            is_index_masked=mask < 0,
            is_index_global_attn=mask > 0,
            is_global_attn=g > 0,
        )[0]

        torch.testing.assert_close(ours(x), expected, atol=2e-6, rtol=0)


def test_global_projections_start_as_copies_and_are_trained_apart() -> None:
    layer = longformer.WindowAttention(init_model(lambda: MultiHeadAttention(8, 2), 0), w=4, g=1)
    assert torch.equal(layer.local.q_proj.weight, layer.of_global.q_proj.weight)

    layer(randn(1, 8, 8, stream="x").float()).sum().backward()
    assert layer.of_global.v_proj.weight.grad.abs().max() > 0
    assert layer.local.v_proj.weight.grad.abs().max() > 0
    assert layer.local.q_proj.weight is not layer.of_global.q_proj.weight


def test_all_arms_start_from_the_same_weights() -> None:
    models = [init_model(partial(longformer.encoder, arm, longformer.Settings()), 0) for arm in longformer.ARMS]
    full, window, both = (
        {name.replace("local.", ""): value for name, value in model.state_dict().items()} for model in models
    )

    assert full.keys() == window.keys()
    assert all(torch.equal(full[name], window[name]) and torch.equal(full[name], both[name]) for name in full)


def test_derivatives_end_where_the_windows_of_all_layers_end() -> None:
    sizes = longformer.Settings(d=8, layers=2, n=24, w=4)
    model = init_model(lambda: longformer.encoder("window", sizes), 0)
    tokens, _ = longformer.hide(torch.tensor([20]), sizes, generator(0))
    reached = longformer.derivatives(model, tokens[0], 12).abs().amax((0, 2)) > 0

    assert sizes.reach == 4
    assert reached.nonzero().flatten().tolist() == list(range(8, 17))


@pytest.mark.parametrize(("arm", "seen"), [("full", True), ("global", True), ("window", False)])
def test_a_far_needle_reaches_cls_only_without_a_mere_window(arm: str, seen: bool) -> None:
    sizes = longformer.Settings(d=8, n=24, w=4)
    model = init_model(lambda: longformer.encoder(arm, sizes), 0)
    tokens, _ = longformer.hide(torch.tensor([20]), sizes, generator(0))
    changed = tokens.clone()
    changed[0, 20] = longformer.NOISE + (tokens[0, 20] - longformer.NOISE + 1) % longformer.NEEDLES
    difference = (longformer.answers(model, tokens) - longformer.answers(model, changed)).abs().max()

    assert (difference > 0) == seen


def test_each_sequence_hides_one_needle_at_its_distance() -> None:
    sizes = longformer.Settings()
    near = longformer.places("near", 500, sizes, generator(0))
    far = longformer.places("far", 500, sizes, generator(0))
    tokens, needles = longformer.hide(torch.cat([near, far]), sizes, generator(0))

    assert (near.min(), near.max(), far.min(), far.max()) == (1, sizes.reach, sizes.reach + 1, sizes.n - 1)
    is_needle = (tokens >= longformer.NOISE) & (tokens < longformer.CLS)
    assert torch.equal(is_needle.nonzero()[:, 1], torch.cat([near, far]))
    assert torch.equal(tokens[is_needle] - longformer.NOISE, needles)
    assert (tokens[:, 0] == longformer.CLS).all()
    assert math.isclose(float(needles.float().mean()), 4.5, abs_tol=0.4)


def test_operations_double_with_the_length_in_the_band_only() -> None:
    sizes = longformer.Settings(d=8, heads=1, w=4)

    assert longformer.mixing_flops("band", 16, sizes) == 2 * 2 * 16 * 3 * 2 * 8  # 3 blocks of 2 keys a query
    assert longformer.mixing_flops("dense", 16, sizes) == 2 * 2 * 16 * 16 * 8
