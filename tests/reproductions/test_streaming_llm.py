"""A streaming cache step by step, the source's law, and what evicting a sink does to the other weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from reproductions.lab.rope import rotate
from reproductions.lab.seeding import generator, init_model
from tests.optional import reference
from tests.reproductions.loading import load

streaming = load("llm/efficient-generation/streaming-llm.py")
S = streaming.Settings()
SOURCE = streaming.source(0, S)
KINDS = ["attention", "mlp", "abstain"]


def model(kind: str, d: int = 16) -> Any:
    """An untrained model in float64, with weights large enough for uneven attention."""
    made: Any = init_model(lambda: streaming.Model(kind, d), 0).double()
    with torch.no_grad():
        for name in ("q_proj", "k_proj"):
            getattr(made, name).weight *= 3
    return made


def texts(n: int, length: int) -> Tensor:
    made: Tensor = SOURCE.sample(n, length, generator(0, "test"))
    return made


def decoded(made: Any, stream: Tensor, sinks: int, w: int) -> Tensor:
    """Logits (T, vocab) of a decoder that keeps keys before rotation, evicts, and rotates by places in the cache."""
    keys: list[Tensor] = []
    values: list[Tensor] = []
    logits = []
    for token in stream:
        x = made.embedding(token)[None]
        normed = made.ln1(x)
        keys.append(made.k_proj(normed))
        values.append(made.v_proj(normed))
        if len(keys) > sinks + w:
            del keys[sinks], values[sinks]
        places = torch.arange(len(keys))
        q = rotate(made.q_proj(normed), places[-1:])
        scores = (q @ rotate(torch.cat(keys), places).T)[0] / math.sqrt(q.shape[1])
        exponentials = scores.exp()
        a = exponentials / (exponentials.sum() + (1 if made.abstain else 0))
        x = x + made.o_proj(a[None] @ torch.cat(values))
        if made.mlp is not None:
            x = x + made.mlp(made.ln2(x))
        logits.append(made.head(made.ln_out(x))[0])
    return torch.stack(logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("arm", "sinks"), [("sink", 1), ("window", 0)])
def test_reading_the_cache_anew_is_decoding_with_a_cache_that_evicts(kind: str, arm: str, sinks: int) -> None:
    made, stream = model(kind), texts(1, 40)
    with torch.no_grad():
        expected = decoded(made, stream[0], sinks, w=5)[10:]
        logits = streaming.streamed(made, stream, streaming.KEPT[arm], 10, 5)[0]

    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)


def test_the_caches_hold_what_their_names_say() -> None:
    stream = torch.arange(30)[None]  # every token is its own position
    window, sink, other = (
        streaming.caches(stream, streaming.KEPT[arm], 16, 12)[0] for arm in ("window", "sink", "other")
    )

    assert window[0].tolist() == list(range(5, 17))
    assert window[-1].tolist() == list(range(18, 30))
    assert torch.equal(sink, torch.cat([torch.zeros(14, 1, dtype=torch.int64), window], 1))
    assert torch.equal(other, torch.cat([torch.ones(14, 1, dtype=torch.int64), window], 1))


def test_nothing_outside_the_cache_is_read() -> None:
    made, stream = model("attention"), texts(1, 60)
    changed = stream.clone()
    changed[:, 1:20] = 0
    before, after = (streaming.streamed(made, tokens, [0], 32, 12) for tokens in (stream, changed))

    assert torch.equal(before, after)
    assert not torch.allclose(made(stream)[:, 32:], made(changed)[:, 32:], atol=1e-3)


@pytest.mark.parametrize("kind", ["attention", "abstain"])
def test_evicting_a_token_divides_the_other_weights_by_what_it_leaves(kind: str) -> None:
    made, cache = model(kind), texts(3, 13)
    kept, evicted = made.reads(cache)[:, -1], made.reads(cache[:, 1:])[:, -1]

    torch.testing.assert_close(evicted, kept[:, 1:] / (1 - kept[:, :1]), atol=1e-12, rtol=0)
    assert kept[:, 0].max() > 0.1


def test_abstaining_is_a_softmax_with_a_key_and_a_value_of_zeros() -> None:
    attend = reference("x_transformers.attend").Attend(heads=1, causal=True, add_zero_kv=True)
    made, tokens = model("abstain"), texts(2, 9)
    x = made.ln1(made.embedding(tokens))
    q, k = (rotate(proj(x), torch.arange(9))[:, None] for proj in (made.q_proj, made.k_proj))
    mixed, _ = attend(q, k, made.v_proj(x)[:, None])

    # the library takes its softmax in float32
    torch.testing.assert_close(made.reads(tokens) @ made.v_proj(x), mixed[:, 0], atol=1e-6, rtol=0)
    assert (made.reads(tokens).sum(2) < 1).all()


def test_the_law_is_what_the_source_draws() -> None:
    tokens = texts(2000, 40)
    law, following = SOURCE.law(tokens)[:, :-1], tokens[:, 1:]
    trigger = (tokens >= streaming.ORDINARY) & (tokens < streaming.BOS)

    torch.testing.assert_close(law.sum(2), torch.ones_like(law[..., 0]))
    assert (tokens[:, 0] == streaming.BOS).all()
    assert (tokens[:, 1:] < streaming.BOS).all()
    assert torch.equal(following[:, 1:][trigger[:, 1:-1]], tokens[:, :-2][trigger[:, 1:-1]])
    assert trigger.float().mean().item() == pytest.approx(0.24, abs=0.01)
    counts = torch.zeros_like(SOURCE.chain).index_put_(
        (tokens[:, :-1].flatten(), following.flatten()), torch.tensor(1.0, dtype=torch.float64), accumulate=True
    )
    ordinary = counts[: streaming.ORDINARY]
    assert (ordinary / ordinary.sum(1, keepdim=True) - SOURCE.chain[: streaming.ORDINARY]).abs().max() < 0.05


def test_the_excess_is_the_expected_loss_above_the_laws_entropy() -> None:
    law = SOURCE.law(texts(2, 12))
    guess = torch.randn(law.shape, generator=generator(0, "logits"), dtype=torch.float64)
    loss = -(law * guess.log_softmax(2)).sum(2)
    entropy = -torch.special.xlogy(law, law).sum(2)

    torch.testing.assert_close(streaming.excess(guess, law), loss - entropy)
    assert streaming.excess((law + 1e-300).log(), law).abs().max() < 1e-12


def test_idle_and_copying_positions_are_told_apart_by_the_trigger() -> None:
    class Looks:
        """All weight on the first token before a copy, three quarters of it on the reader itself elsewhere."""

        def reads(self, tokens: Tensor) -> Tensor:
            trigger = ((tokens >= streaming.ORDINARY) & (tokens < streaming.BOS)).float()[..., None]
            first = torch.zeros(tokens.shape[1], tokens.shape[1])
            first[:, 0] = 1
            weights: Tensor = trigger * first + (1 - trigger) * (0.25 * first + 0.75 * torch.eye(tokens.shape[1]))
            return weights

    assert streaming.looks(Looks(), texts(4, 48)) == pytest.approx({"idle": 0.25, "copy": 1.0, "self": 0.75})
