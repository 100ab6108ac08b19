"""RWKV's two forms are one function, also that of its authors' library; what surrounds it; what it keeps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from reproductions.lab.characters import CharacterSplit  # noqa: E402
from reproductions.lab.corpus import Characters  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from tests.optional import reference  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

rwkv = load("beyond-transformers/new-model-architectures/rwkv.py")
SIZES = rwkv.Settings(d=16, wide=40)


def randn(*shape: int, stream: str) -> Tensor:
    """Normal draws in float64 that `stream` decides."""
    draws: Tensor = torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)
    return draws


def recurrent(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One position after the other, from an empty past."""
    zero = torch.zeros_like(k[:, 0])
    past, outputs = rwkv.Sums(zero, zero, torch.full_like(zero, -math.inf)), []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        output, past = rwkv.wkv_step(w, u, k_t, v_t, past)
        outputs.append(output)
    stacked: Tensor = torch.stack(outputs, 1)
    return stacked


def model(arm: str, vocab: int = 20, context: int = 40) -> Any:
    """A model with random weights everywhere, in float64."""

    def build() -> Any:
        made = rwkv.language_model(arm, vocab, SIZES, context)
        for p in made.parameters():
            torch.nn.init.normal_(p, mean=p.mean().item(), std=0.3)
        return made

    return init_model(build, 0).double().requires_grad_(requires_grad=False)


def logits_by_steps(arm: str, made: Any, tokens: Tensor) -> Tensor:
    state, logits = rwkv.start(arm, SIZES), []
    for token in tokens.T:
        one, state = rwkv.STEPS[arm](made, token, state)
        logits.append(one)
    stacked: Tensor = torch.stack(logits, 1)
    return stacked


@settings(deadline=None, max_examples=40)
@given(length=st.integers(1, 40), spread=st.sampled_from([0.1, 1.0, 20.0]), seed=st.integers(0, 100))
def test_both_forms_agree_at_every_length(length: int, spread: float, seed: int) -> None:
    k, v = spread * randn(2, length, 5, stream=f"k{seed}"), randn(2, length, 5, stream=f"v{seed}")
    w, u = randn(5, stream=f"w{seed}").exp(), randn(5, stream=f"u{seed}")

    torch.testing.assert_close(rwkv.wkv_parallel(w, u, k, v), recurrent(w, u, k, v), atol=1e-9, rtol=0)


def test_wkv_is_the_fraction_that_defines_it() -> None:
    w, u, k, v = 0.3, -0.4, randn(1, 6, 1, stream="k"), randn(1, 6, 1, stream="v")
    weights = [math.exp(-(4 - i) * w + k[0, i, 0]) for i in range(5)] + [math.exp(u + k[0, 5, 0])]
    expected = sum(x * float(y) for x, y in zip(weights, v[0, :, 0], strict=True)) / sum(weights)
    parallel = rwkv.wkv_parallel(torch.tensor([w]).double(), torch.tensor([u]).double(), k, v)

    assert float(parallel[0, 5, 0]) == pytest.approx(expected, rel=1e-6)


def test_the_recurrence_does_not_overflow_where_plain_sums_would() -> None:
    k = torch.tensor([500.0, -500.0, 800.0, 0.0]).view(1, 4, 1)
    v = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1)
    outputs = recurrent(torch.ones(1), torch.zeros(1), k, v)

    torch.testing.assert_close(outputs.flatten(), torch.tensor([1.0, 1.0, 3.0, 3.0]))


@pytest.mark.parametrize("arm", ["rwkv", "gpt"])
def test_a_model_says_the_same_token_by_token_as_all_at_once(arm: str) -> None:
    made, tokens = model(arm), torch.randint(0, 20, (1, 40), generator=generator(0))

    torch.testing.assert_close(logits_by_steps(arm, made, tokens), made(tokens), atol=1e-10, rtol=0)


def test_a_wrong_decay_in_one_form_is_found() -> None:
    made, tokens = model("rwkv"), torch.randint(0, 20, (1, 40), generator=generator(0))
    assert rwkv.largest_difference(made, tokens, SIZES) < 1e-10

    step = rwkv.wkv_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rwkv, "wkv_step", lambda w, u, k, v, past: step(1.01 * w, u, k, v, past))
        assert rwkv.largest_difference(made, tokens, SIZES) > 1e-6


@pytest.mark.parametrize("arm", ["rwkv", "gpt"])
def test_no_logit_depends_on_later_tokens(arm: str) -> None:
    made, tokens = model(arm), torch.randint(0, 20, (2, 12), generator=generator(0))
    changed = tokens.clone()
    changed[:, 8:] = (tokens[:, 8:] + 1) % 20
    before, after = made(tokens), made(changed)

    torch.testing.assert_close(before[:, :8], after[:, :8], atol=1e-12, rtol=0)
    assert (before[:, 8:] != after[:, 8:]).any(-1).all()


def test_the_authors_library_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_JIT_ON", "0")
    library = reference("rwkv.model")
    made = model("rwkv").float()
    names = {"token_embedding.0.": "emb.", "token_embedding.1.": "blocks.0.ln0.", "_proj.": ".", "ln_out": "ln_out"}
    names |= {"attn.log_w": "att.time_decay", "attn.u": "att.time_first", "attn.": "att.", "mlp.": "ffn."}
    names |= {"mu_": "time_mix_", ".r.": ".receptance.", ".k.": ".key.", ".v.": ".value.", ".o.": ".output."}
    weights = {}
    for name, p in made.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)  # noqa: PLW2901
        weights[name] = p.clone()
    torch.save(weights, tmp_path / "weights.pth")
    theirs = library.RWKV(model=str(tmp_path / "weights"), strategy="cpu fp32", verbose=False)
    tokens = torch.randint(0, 20, (1, 30), generator=generator(0))
    logits, _ = theirs.forward(tokens[0].tolist(), None, full_output=True)

    torch.testing.assert_close(made(tokens)[0], logits, atol=1e-4, rtol=1e-4)


def test_both_models_have_as_many_parameters() -> None:
    gpt, ours = (count_parameters(rwkv.language_model(a, 110, rwkv.Settings(), 32)) for a in ("gpt", "rwkv"))

    assert ours == pytest.approx(gpt, rel=0.03)


def test_only_the_gpt_keeps_more_of_a_longer_text() -> None:
    sizes = rwkv.Settings(d=16, wide=40, kept_after=(4, 8))
    tokens = torch.randint(0, 20, (1, 8), generator=generator(0))

    assert rwkv.kept_bytes("rwkv", tokens, sizes) == {4: 4 * 2 * 5 * 16, 8: 4 * 2 * 5 * 16}
    assert rwkv.kept_bytes("gpt", tokens, sizes) == {n: 8 + 4 * 2 * 2 * 16 * n for n in (4, 8)}


def test_bigram_counts_have_one_added() -> None:
    text = CharacterSplit(Characters("ab"), torch.tensor([0, 1, 0, 1, 1]), torch.tensor([[0, 1, 0]]))

    # after a: b twice; after b: a once and b once; three tokens, the last for unknown characters
    expected = -torch.tensor([[3 / 5, 2 / 5]]).log()
    torch.testing.assert_close(rwkv.bigram_losses(text), expected)
