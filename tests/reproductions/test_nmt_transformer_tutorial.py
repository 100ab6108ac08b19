"""What nmt-transformer-tutorial computes exactly: torch's layers, its masks, the shift, the rate, and the errors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.toy_bilingual import PAD, Pairs, sample  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

nmt = load("background/transformer-architecture/nmt-transformer-tutorial.py")
SETTINGS = nmt.Settings()


def transformer(pooled: bool = False) -> Any:
    """A model in float64 whose biases and norms are random too, so that none can be forgotten."""
    model = init_model(lambda: nmt.Transformer(SETTINGS, pooled=pooled), 0).double()
    gen = generator(0, "weights")
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=gen, dtype=torch.float64)
    return model.requires_grad_(requires_grad=False)


def pairs(n: int = 8) -> Pairs:
    return sample(n, 5, 10, generator(0, "pairs"))


def copy_attention(mine: Any, theirs: Any) -> None:
    projections = (mine.W_Q, mine.W_K, mine.W_V)
    theirs.in_proj_weight.data = torch.cat([layer.weight for layer in projections])
    theirs.in_proj_bias.data = torch.cat([layer.bias for layer in projections])
    theirs.out_proj.load_state_dict(mine.W_O.state_dict())


def copy_layer(mine: Any, theirs: Any) -> None:
    copy_attention(mine.self_attention, theirs.self_attn)
    if hasattr(theirs, "multihead_attn"):
        copy_attention(mine.cross_attention, theirs.multihead_attn)
        theirs.norm3.load_state_dict(mine.norm3.state_dict())
    theirs.linear1.load_state_dict(mine.mlp[0].state_dict())
    theirs.linear2.load_state_dict(mine.mlp[2].state_dict())
    theirs.norm1.load_state_dict(mine.norm1.state_dict())
    theirs.norm2.load_state_dict(mine.norm2.state_dict())


def torch_transformer(model: Any) -> nn.Transformer:
    """torch's own encoder-decoder with the weights of ours; the norms after the stacks, which ours lacks, left out."""
    s = SETTINGS
    reference = nn.Transformer(s.d, s.heads, 1, 1, s.d_ff, dropout=0.0, batch_first=True, dtype=torch.float64)
    reference.encoder.norm = reference.decoder.norm = None
    copy_layer(model.encoder, reference.encoder.layers[0])
    copy_layer(model.decoder, reference.decoder.layers[0])
    return reference


def test_logits_are_those_of_torch_s_transformer() -> None:
    model, some = transformer(), pairs()
    x, y = some.source, some.target[:, :-1]
    states = torch_transformer(model)(
        nmt.embed(model.source_embedding, x),
        nmt.embed(model.target_embedding, y),
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(y.shape[1], dtype=torch.float64),
        src_key_padding_mask=nmt.blocked(x != PAD).double(),
        memory_key_padding_mask=nmt.blocked(x != PAD).double(),
    )
    torch.testing.assert_close(model(x, y), model.head(states), atol=1e-12, rtol=0)


def test_cross_attention_is_torch_s_with_its_weights_per_head() -> None:
    layer, some = transformer().decoder.cross_attention, pairs()
    model = transformer()
    memory, M = model.encode(some.source)
    y = nmt.embed(model.target_embedding, some.target)
    reference = nn.MultiheadAttention(SETTINGS.d, SETTINGS.heads, batch_first=True, dtype=torch.float64)
    copy_attention(layer, reference)
    expected, weights = reference(y, memory, memory, key_padding_mask=some.source == PAD, average_attn_weights=False)
    mixed, mine = layer(y, memory, M)
    torch.testing.assert_close(mixed, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(mine, weights, atol=1e-12, rtol=0)


@pytest.mark.parametrize("pooled", [False, True])
def test_the_masks_leave_rounding_errors_only(pooled: bool) -> None:
    model, some = transformer(pooled), pairs()
    assert nmt.parallel_error(model, some) < 1e-12
    assert nmt.padding_error(model, some) < 1e-12


def test_a_decoder_that_sees_the_future_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nmt, "causal_mask", lambda length: torch.ones(length, length, dtype=torch.bool))
    assert nmt.parallel_error(transformer(), pairs()) > 1e-2


def test_a_mask_that_lets_padding_through_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nmt, "blocked", lambda allowed: torch.zeros(allowed.shape))
    assert nmt.padding_error(transformer(), pairs()) > 1e-3


def test_padding_that_counts_in_the_loss_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(logits: Tensor, answers: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten())

    monkeypatch.setattr(nmt, "masked_loss", careless)
    assert nmt.padding_error(transformer(), pairs()) > 1e-3


def test_the_pooled_decoder_receives_the_mean_of_the_words_states_at_every_position() -> None:
    full, pooled, some = transformer(), transformer(pooled=True), pairs()
    pooled.encoder, pooled.source_embedding = full.encoder, full.source_embedding
    states, _ = full.encode(some.source)
    memory, M = pooled.encode(some.source)
    for row, length in enumerate(some.lengths.tolist()):
        torch.testing.assert_close(memory[row, 0], states[row, : length + 1].mean(0), atol=1e-12, rtol=0)
    attention = pooled.decoder.cross_attention
    mixed, weights = attention(nmt.embed(pooled.target_embedding, some.target), memory, M)
    assert (weights == 1).all()
    expected = attention.W_O(attention.W_V(memory)).expand_as(mixed)
    torch.testing.assert_close(mixed, expected, atol=1e-12, rtol=0)


def test_both_models_have_as_many_parameters_at_work() -> None:
    full, pooled = (nmt.Transformer(SETTINGS, pooled=flag) for flag in (False, True))
    cross = pooled.decoder.cross_attention
    idle = count_parameters(cross.W_Q) + count_parameters(cross.W_K)
    assert count_parameters(pooled) - idle == pytest.approx(count_parameters(full), rel=0.001)


def test_greedy_translation_continues_from_its_own_words() -> None:
    model, some = transformer(), pairs()
    words = nmt.translate(model, some.source, 6)
    inputs = torch.cat([some.target[:, :1], words[:, :-1]], dim=1)
    assert torch.equal(model(some.source, inputs).argmax(2), words)


def test_exact_match_asks_for_every_word_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    some = pairs()
    answers = some.target[:, 1:]
    for place, match in ((None, 1.0), (0, 7 / 8), (int((answers[0] != PAD).sum()) - 1, 7 / 8), (-1, 1.0)):
        said = answers.clone()
        if place is not None:
            said[0, place] += 1
        monkeypatch.setattr(nmt, "translate", lambda *_, said=said: said)
        assert nmt.exact_match(None, some) == match


def test_the_rate_is_the_tutorial_s() -> None:
    d, w = 512, 4000
    rates = [nmt.rate(step, d, w) for step in (1, 2, w, 4 * w)]
    assert rates[1] == pytest.approx(2 * rates[0])
    assert rates[2] == pytest.approx(1 / math.sqrt(d * w))
    assert rates[2] == pytest.approx(7e-4, rel=0.01)
    assert rates[3] == pytest.approx(rates[2] / 2)
    assert max(nmt.rate(step, d, w) for step in range(1, 3 * w)) == nmt.rate(w, d, w)
