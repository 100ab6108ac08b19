"""The three forms of linear attention are one function, with one gradient, and decoding is the model itself."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from reproductions.lab.duplication import duplication  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

linear = load("llm/long-context/linear-attention.py")
FORMS = (linear.quadratic, linear.running_sums, linear.recurrent)


def randn(*shape: int, stream: str) -> Tensor:
    """Normal draws in float64 that `stream` decides."""
    draws: Tensor = torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)
    return draws


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each output as the weighted mean that defines it, in loops: (T, d_k), (T, d_k), (T, d_v)."""

    phi_q, phi_k = (torch.where(x > 0, x + 1, x.exp()) for x in (q, k))
    rows = []
    for i in range(len(q)):
        weights = torch.stack([(phi_q[i] * phi_k[j]).sum() for j in range(i + 1)])
        rows.append((weights[:, None] * v[: i + 1]).sum(0) / weights.sum())
    outputs: Tensor = torch.stack(rows)
    return outputs


@settings(deadline=None, max_examples=25)  # the first call of an operation in torch is slow
@given(length=st.integers(1, 12), scale=st.floats(0.1, 5))
def test_every_form_has_the_outputs_and_gradients_of_the_definition(length: int, scale: float) -> None:
    shapes = {"q": (length, 6), "k": (length, 6), "v": (length, 3)}
    inputs = [(scale * randn(*shape, stream=name)).requires_grad_() for name, shape in shapes.items()]
    weights = randn(length, 3, stream="loss")
    expected = by_hand(*inputs)
    gradients = torch.autograd.grad((expected * weights).sum(), inputs)

    for form in FORMS:
        output = form(*(x[None, None] for x in inputs))[0, 0]
        torch.testing.assert_close(output, expected, atol=1e-11, rtol=0)
        found = torch.autograd.grad((output * weights).sum(), inputs)
        torch.testing.assert_close(found, gradients, atol=1e-10, rtol=0)


def test_an_altered_form_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = linear.Settings(d=8, heads=2, exact_length=5)
    assert linear.forms_differ(0, sizes) < 1e-12

    monkeypatch.setattr(linear, "read", lambda phi_q, state, _z: (phi_q[..., None, :] @ state)[..., 0, :])
    assert linear.forms_differ(0, sizes) > 1e-3


def test_both_arms_start_from_the_same_weights() -> None:
    models = [init_model(partial(linear.copier, arm, 31, linear.Settings()), 0) for arm in linear.ARMS]
    softmax, other = (model.state_dict() for model in models)

    assert softmax.keys() == other.keys()
    assert all(torch.equal(softmax[name], other[name]) for name in softmax)


@pytest.mark.parametrize("arm", ["softmax", "linear"])
def test_decoding_gives_the_logits_of_the_whole_sequence(arm: str) -> None:
    sizes = linear.Settings(d=16, heads=2)
    model = init_model(lambda: linear.copier(arm, 12, sizes), 0)
    tokens = torch.randint(0, 11, (3, 12), generator=generator(0))
    with torch.no_grad():
        decode = linear.Decoder(model, arm, 3, sizes)
        logits = torch.stack([decode(token) for token in tokens.T], 1)

        torch.testing.assert_close(logits, model(tokens), atol=1e-5, rtol=0)


def test_only_the_cache_of_softmax_grows() -> None:
    sizes = linear.Settings(d=16, heads=2, layers=1, counted=(3, 6))
    softmax, fixed = (linear.decoding_costs(arm, 0, sizes) for arm in linear.ARMS)

    assert [row["bytes"] for row in softmax] == [2 * 3 * 16 * 4, 2 * 6 * 16 * 4]
    assert [row["bytes"] for row in fixed] == [2 * (8 * 8 + 8) * 4] * 2
    assert softmax[1]["flops"] - softmax[0]["flops"] == 3 * 2 * 2 * 16  # three keys more to score, three values more
    assert fixed[1]["flops"] == fixed[0]["flops"]


def test_a_copier_is_scored_on_what_it_writes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = linear.Settings(length=4, symbols=3, steps=1, test_strings=50)
    truth = duplication(50, 4, 3, generator(0, "test strings"))

    class Oracle(linear.Decoder):  # type: ignore[misc, name-defined]
        """Knows the string, but is wrong about its last symbol."""

        def __call__(self, tokens: Tensor) -> Tensor:
            self.position += 1
            if self.position > 5:
                assert torch.equal(tokens, truth[:, self.position - 1]), "reads what it wrote"
            following = truth[:, min(self.position, 9)] + (self.position == 9)
            logits: Tensor = torch.nn.functional.one_hot(following % 3, 4).float()
            return logits

    monkeypatch.setattr(linear, "Decoder", Oracle)
    assert linear.learn_to_copy("linear", 0, sizes)[0] == pytest.approx(0.75)
