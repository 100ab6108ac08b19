"""What bahdanau-attention computes exactly: the formula of the paper, blindness to padding, and torch's own GRU."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.toy_bilingual import START, Pairs, sample  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

bahdanau = load("background/transformer-architecture/bahdanau-attention.py")
SETTINGS = bahdanau.Settings()


def translator(attention: bool = True) -> Any:
    return init_model(lambda: bahdanau.Translator(8, 6, 10, attention=attention), 0).double()


def pairs(n: int = 6) -> Pairs:
    return sample(n, 4, 16, generator(0, "pairs"), verb_last=True)


def test_weights_and_context_follow_the_formula_word_by_word() -> None:
    model, some = translator(), pairs()
    s0, memory, Uh = model.begin(some.source)
    context, alpha = model.attention(s0, memory, Uh)
    W, U, v = (layer.weight for layer in (model.attention.W, model.attention.U, model.attention.v))
    for row, length in enumerate(some.lengths.tolist()):
        h = memory.h[row, : length + 1]  # the end of the sentence is a token too
        e = [(v[0] @ torch.tanh(W @ s0[row] + U @ h_j)).item() for h_j in h]
        weights = torch.tensor([math.exp(x) for x in e], dtype=torch.float64)
        weights /= weights.sum()
        torch.testing.assert_close(alpha[row, : length + 1], weights, atol=1e-12, rtol=0)
        torch.testing.assert_close(context[row], weights @ h, atol=1e-12, rtol=0)
        assert (alpha[row, length + 1 :] == 0).all()


@pytest.mark.parametrize("attention", [True, False])
def test_padding_changes_nothing(attention: bool) -> None:
    model, some = translator(attention), pairs()
    logits = model(some.source, some.target[:, :-1])
    for row, length in enumerate(some.lengths.tolist()):
        alone = model(some.source[row : row + 1, : length + 1], some.target[row : row + 1, :-1])
        torch.testing.assert_close(logits[row : row + 1], alone, atol=1e-12, rtol=0)


def test_states_of_the_encoder_join_a_gru_from_the_left_and_one_from_the_right() -> None:
    encoder, some = translator().encoder, pairs(1)
    words = encoder.embedding(some.source[:, : some.lengths[0] + 1])
    halves = []
    for suffix in ("", "_reverse"):
        gru = torch.nn.GRU(8, 6, batch_first=True).double()
        gru.load_state_dict({name: getattr(encoder.gru, name + suffix) for name in gru.state_dict()})
        halves.append(gru(words.flip(1))[0].flip(1) if suffix else gru(words)[0])
    memory = encoder(some.source)
    expected = torch.cat(halves, dim=2)
    torch.testing.assert_close(memory.h[:, : expected.shape[1]], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        memory.summary, torch.cat([halves[0][:, -1], halves[1][:, 0]], dim=1), atol=1e-12, rtol=0
    )


def test_the_decoder_without_attention_is_torch_s_gru_on_words_joined_with_one_vector() -> None:
    model, some = translator(attention=False), pairs()
    target = some.target[:, :-1]
    s0, memory, _ = model.begin(some.source)
    gru = torch.nn.GRU(8 + 12, 10, batch_first=True).double()
    gru.load_state_dict({name: getattr(model.gru, name.removesuffix("_l0")) for name in gru.state_dict()})
    words, c = model.embedding(target), memory.summary[:, None].expand(-1, target.shape[1], -1)
    s, _ = gru(torch.cat([words, c], dim=2), s0[None])
    expected = model.readout(torch.cat([s, c, words], dim=2))
    torch.testing.assert_close(model(some.source, target), expected, atol=1e-12, rtol=0)


def test_only_attention_reads_the_states_between_the_ends() -> None:
    for attention in (True, False):
        model, some = translator(attention), pairs(1)
        s0, memory, _ = model.begin(some.source)
        changed = memory._replace(h=memory.h + 1)
        outputs = [
            model.step(torch.tensor([START]), s0, read, model.attention.U(read.h) if attention else None)[0]
            for read in (memory, changed)
        ]
        assert torch.equal(*outputs) != attention


def test_greedy_translation_continues_from_its_own_words() -> None:
    model, some = translator(), pairs()
    words, alpha = model.translate(some.source, 5)
    inputs = torch.cat([torch.full((len(words), 1), START), words[:, :-1]], dim=1)
    assert torch.equal(model(some.source, inputs).argmax(2), words)
    torch.testing.assert_close(alpha.sum(2), torch.ones(len(words), 5, dtype=torch.float64))


def test_the_diagonal_is_right_where_the_order_of_words_stays() -> None:
    one = sample(200, 4, 16, generator(1), verb_last=True)
    identity = torch.arange(one.alignment.shape[1]).expand_as(one.alignment)
    m = torch.where(identity < one.lengths[:, None], identity, -1)  # one English word for each Spanish one, in order
    monotone = bahdanau.Pairs(one.source, one.target, m, one.lengths)
    is_word = m >= 0
    assert torch.equal(bahdanau.diagonal(monotone)[is_word], m[is_word])
    assert (bahdanau.diagonal(one) == one.alignment)[one.alignment >= 0].double().mean() < 0.5


def test_both_models_have_as_many_parameters() -> None:
    s = SETTINGS
    with_attention = count_parameters(bahdanau.Translator(s.d, s.d_h, s.d_s, attention=True))
    without = count_parameters(bahdanau.Translator(s.d, s.d_h_fixed, s.d_s_fixed, attention=False))
    assert without == pytest.approx(with_attention, rel=0.01)
    assert without >= with_attention
