"""LSH attention is exact softmax over the pairs that it scores, and reversible layers train like ordinary ones."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from reproductions.lab.seeding import generator  # noqa: E402
from tests.optional import reference  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

reformer = load("llm/long-context/reformer.py")


def randn(*shape: int, stream: str) -> Tensor:
    """Normal draws in float64 that `stream` decides."""
    draws: Tensor = torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)
    return draws


def partners(bucket: list[list[int]], size: int) -> list[set[int]]:
    """The tokens that each token may score, in plain Python: bucket has one list per round."""
    found: list[set[int]] = [set() for _ in bucket[0]]
    for numbers in bucket:
        order = sorted(range(len(numbers)), key=lambda token: (numbers[token], token))
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        for number, chunk in enumerate(chunks):
            near = chunk + (chunks[number - 1] if number else [])
            for token in chunk:
                found[token] |= {other for other in near if other <= token}
    return found


def by_hand(q: Tensor, v: Tensor, allowed: list[set[int]]) -> Tensor:
    """Softmax of every query over its allowed keys, itself only if there is no other: (T, d)."""
    rows = []
    for i, keys in enumerate(allowed):
        chosen = sorted(keys - {i}) or [i]
        unit = q[chosen] / q[chosen].norm(dim=1, keepdim=True)
        rows.append((unit @ q[i]).softmax(0) @ v[chosen])
    outputs: Tensor = torch.stack(rows)
    return outputs


@settings(deadline=None, max_examples=25)  # the first call of an operation in torch is slow
@given(chunks=st.integers(1, 6), size=st.integers(1, 4), rounds=st.integers(1, 5), seed=st.integers(0, 99))
def test_lsh_attention_is_softmax_over_the_union_of_what_the_rounds_score(
    chunks: int, size: int, rounds: int, seed: int
) -> None:
    T = chunks * size
    q, v = randn(2, T, 6, stream="q"), randn(2, T, 6, stream="v")
    bucket = torch.randint(0, 4, (rounds, 2, T), generator=generator(seed))
    result = reformer.lsh_attention(q, v, bucket, size)

    allowed = [partners(bucket[:, b].tolist(), size) for b in range(2)]
    for b in range(2):
        torch.testing.assert_close(result[b], by_hand(q[b], v[b], allowed[b]), atol=1e-9, rtol=0)
    pairs = sum(len(keys - {i}) for sequence in allowed for i, keys in enumerate(sequence))
    if T > 1:
        assert reformer.covered(bucket, size) == pytest.approx(pairs / (2 * T * (T - 1) / 2))


def test_full_attention_is_lsh_attention_with_one_chunk() -> None:
    q, v = randn(2, 8, 6, stream="q"), randn(2, 8, 6, stream="v")
    everything = [set(range(i + 1)) for i in range(8)]

    torch.testing.assert_close(reformer.full_attention(q, v)[0], by_hand(q[0], v[0], everything), atol=1e-9, rtol=0)
    one_chunk = reformer.lsh_attention(q, v, torch.zeros(3, 2, 8, dtype=torch.int64), 8)
    torch.testing.assert_close(one_chunk, reformer.full_attention(q, v), atol=1e-9, rtol=0)


def test_one_round_is_lsh_self_attention_of_transformers() -> None:
    library = reference("transformers.models.reformer.modeling_reformer")
    config = library.ReformerConfig(
        hidden_size=8, num_attention_heads=1, attention_head_size=8, lsh_attn_chunk_length=4, num_hashes=1,
        num_buckets=4, lsh_num_chunks_before=1, lsh_num_chunks_after=0, is_decoder=True,
        lsh_attention_probs_dropout_prob=0.0, hash_seed=0,
    )  # fmt: skip
    theirs = library.LSHSelfAttention(config, layer_idx=0).double().eval()
    x = randn(2, 16, 8, stream="x")
    q, v = theirs.query_key(x), theirs.value(x)
    bucket = torch.randint(0, 4, (1, 2, 16), generator=generator(0))
    with torch.no_grad():
        expected = theirs(x, buckets=bucket[0][:, None, None]).hidden_states

        result = reformer.lsh_attention(q, v, bucket, 4)

    # theirs lets the first chunk look at the last one too, so it is left out
    place = reformer.sorted_by(bucket)[1][0]
    torch.testing.assert_close(result[place >= 4], expected[place >= 4], atol=1e-5, rtol=0)  # their norm adds 1e-6


def test_similar_vectors_share_a_bucket_more_often() -> None:
    x = randn(1, 200, 16, stream="x")
    close, far = x + 0.2 * randn(1, 200, 16, stream="noise"), randn(1, 200, 16, stream="other")

    def agreement(other: Tensor) -> float:
        bucket = reformer.lsh_buckets(torch.cat([x, other], 1), 8, 16, generator(0))
        return float((bucket[:, :, :200] == bucket[:, :, 200:]).double().mean())

    assert agreement(close) > 0.5
    assert agreement(far) < 0.12
    assert agreement(3 * x) == 1  # the length of a vector does not matter


def reversible_layers(depth: int = 3) -> Any:
    """Layers in float64 and their two inputs."""
    sizes = reformer.Settings(width=8, heads=2)
    return reformer.stack(depth, 0, sizes), randn(2, 2, 5, 8, stream="x").unbind()


def test_inputs_come_back_from_outputs() -> None:
    layers, inputs = reversible_layers()
    outputs = reformer.run_plainly(layers, *inputs)
    for layer in reversed(layers):
        outputs = layer.inverse(*outputs)

    torch.testing.assert_close(outputs, inputs, atol=1e-12, rtol=0)
    assert (reformer.run_plainly(layers, *inputs)[0] - inputs[0]).abs().max() > 0.1


def test_the_reversible_backward_pass_is_right_by_finite_differences() -> None:
    layers, inputs = reversible_layers(2)
    leaves = [part[:1, :3].clone().requires_grad_() for part in inputs]

    assert torch.autograd.gradcheck(partial(reformer.run_reversible, layers), leaves, fast_mode=True)


def test_gradients_of_parameters_are_those_of_ordinary_backpropagation() -> None:
    layers, inputs = reversible_layers()
    weights = randn(2, 2, 5, 8, stream="loss")
    found = []
    for run in (reformer.run_reversible, reformer.run_plainly):
        for layer in layers:
            layer.zero_grad()
        y1, y2 = run(layers, *(part.clone().requires_grad_() for part in inputs))
        (y1 * weights[0] + y2 * weights[1]).sum().backward()
        found.append([p.grad.clone() for layer in layers for p in layer.parameters()])

    torch.testing.assert_close(found[0], found[1], atol=1e-11, rtol=0)
    assert max(float(gradient.abs().max()) for gradient in found[0]) > 0.1


def test_only_reversible_layers_keep_the_same_at_every_depth() -> None:
    layers, inputs = reversible_layers(4)
    leaves = [part.clone().requires_grad_() for part in inputs]
    kept = {
        (run, depth): reformer.bytes_kept(partial(run, layers[:depth], *leaves), layers)
        for run in (reformer.run_reversible, reformer.run_plainly)
        for depth in (1, 4)
    }

    assert kept[reformer.run_reversible, 1] == kept[reformer.run_reversible, 4] == 2 * 2 * 5 * 8 * 8
    assert kept[reformer.run_plainly, 4] > 3 * kept[reformer.run_plainly, 1]
