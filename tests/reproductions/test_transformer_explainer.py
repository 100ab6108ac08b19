"""The displayed stages are those of GPT-2, the parser knows its grammar, and tokens are drawn as often as they should."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.transformer import TinyGPT  # noqa: E402
from tests.optional import reference  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

explainer = load("background/transformer-architecture/transformer-explainer.py")


def model(causal: bool = True) -> TinyGPT:
    """A GPT of 3 layers, untrained, in float64."""
    made: TinyGPT = (
        init_model(lambda: TinyGPT(30, 24, 3, 4, 16, causal=causal), 0).double().requires_grad_(requires_grad=False)
    )
    return made


def tokens(*shape: int, stream: str = "tokens") -> Tensor:
    drawn: Tensor = torch.randint(30, shape, generator=generator(0, stream))
    return drawn


def test_stages_are_those_of_gpt2_in_transformers() -> None:
    library = reference("transformers")
    config = library.GPT2Config(
        vocab_size=30, n_positions=16, n_embd=24, n_layer=3, n_head=4, activation_function="gelu", use_cache=False
    )
    theirs = init_model(lambda: library.GPT2LMHeadModel(config), 0).double().eval().requires_grad_(requires_grad=False)
    for name, parameter in theirs.named_parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(0, name), dtype=torch.float64))
    names = {
        "ln_1": "ln1", "ln_2": "ln2", "attn.c_proj": "attn.o_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    }  # fmt: skip
    body = theirs.transformer
    weights = {
        "token_embedding.weight": body.wte.weight,
        "position_embedding.weight": body.wpe.weight,
        "ln_out.weight": body.ln_f.weight,
        "ln_out.bias": body.ln_f.bias,
        "head.weight": theirs.lm_head.weight,
    }
    for layer, block in enumerate(body.h):
        for theirs_name, ours in names.items():
            part = block.get_submodule(theirs_name)
            weights[f"blocks.{layer}.{ours}.bias"] = part.bias
            if part.weight.dim() == 2:  # their linear maps are stored the other way round
                weights[f"blocks.{layer}.{ours}.weight"] = part.weight.T
            else:
                weights[f"blocks.{layer}.{ours}.weight"] = part.weight
        for kind in ("weight", "bias"):  # their queries, keys and values are one map
            for name, part in zip("qkv", getattr(block.attn.c_attn, kind).chunk(3, dim=-1), strict=True):
                weights[f"blocks.{layer}.attn.{name}_proj.{kind}"] = part.T if kind == "weight" else part
    row = tokens(16)

    shown = explainer.stages(weights, row, 4)
    expected = theirs(row[None], output_hidden_states=True)

    torch.testing.assert_close(shown["embedding"], expected.hidden_states[0][0], atol=1e-12, rtol=0)
    torch.testing.assert_close(shown["1.output"], expected.hidden_states[2][0], atol=1e-12, rtol=0)
    torch.testing.assert_close(shown["logits"], expected.logits[0], atol=1e-11, rtol=0)


def test_stages_need_the_weights_alone_and_the_right_heads() -> None:
    ours, row = model(), tokens(16)
    expected = ours(row[None])[0]

    torch.testing.assert_close(explainer.stages(ours.state_dict(), row, 4)["logits"], expected, atol=1e-12, rtol=0)
    assert (explainer.stages(ours.state_dict(), row, 2)["logits"] - expected).abs().max() > 1e-3


def test_attention_patterns_are_shares_of_what_came_before() -> None:
    shown = explainer.stages(model().state_dict(), tokens(9), 4)
    for layer in range(3):
        for head in range(4):
            pattern = shown[f"{layer}.{head}.pattern"]
            assert torch.equal(pattern, pattern.tril())
            torch.testing.assert_close(pattern.sum(1), torch.ones(9, dtype=torch.float64))
            assert shown[f"{layer}.{head}.A"].shape == (9, 6)


def test_a_model_without_a_mask_leaks() -> None:
    pair = tokens(3, 16), tokens(3, 16, stream="others")

    assert explainer.leak(model(), *pair) <= 1e-12
    assert explainer.leak(model(causal=False), *pair) > 1e-3


def test_tokens_are_drawn_with_the_probabilities_of_the_softmax() -> None:
    z = torch.randn(6, generator=generator(0, "z"))
    for T in explainer.TEMPERATURES:
        expected = (z / T).softmax(0)
        drawn = explainer.draw(z.expand(50_000, 6), T, generator(0, "draws")).bincount(minlength=6) / 50_000
        assert ((drawn - expected).abs() < 5 * (expected * (1 - expected) / 50_000).sqrt()).all()


@settings(deadline=None, max_examples=50)
@given(scale=st.floats(0.1, 20), temperature=st.floats(0.05, 20))
def test_probabilities_are_a_softmax_whose_entropy_rises_with_the_temperature(scale: float, temperature: float) -> None:
    z = scale * torch.randn(200, 7, generator=generator(0, "z"), dtype=torch.float64)
    p, warmer = (explainer.probabilities(z, T) for T in (temperature, 1.1 * temperature))

    torch.testing.assert_close(p, (z / temperature).softmax(1), atol=1e-12, rtol=0)
    assert (torch.special.entr(warmer).sum(1) >= torch.special.entr(p).sum(1) - 1e-12).all()


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**6))
def test_every_written_sentence_is_grammatical(seed: int) -> None:
    words = explainer.write_sentence(random.Random(seed))

    assert explainer.is_grammatical(words)
    assert len(words) + 2 <= explainer.Settings().context
    assert not explainer.is_grammatical(words[1:])


@pytest.mark.parametrize(
    "text",
    [
        "las niñas ven un perro",
        "una casa alta con los gatos rojos lleva la flor nueva pequeña sin un libro",
        "the small dog near some houses sees this new cat",
        "these dogs with a cat see the trees",
    ],
)
def test_the_parser_takes_agreement(text: str) -> None:
    assert explainer.is_grammatical(text.split())


@pytest.mark.parametrize(
    "text",
    [
        "las niñas ve un perro",  # the verb
        "las niñas ven una perro",  # the article
        "las niñas altos ven un perro",  # the adjective
        "the dog near some houses see this cat",  # agrees with the nearer noun
        "this dogs see a cat",
        "the dog small sees a cat",  # order
        "la niña roja nueva alta ve un perro",  # three adjectives
        "the dog ve un perro",  # two languages
        "the dog sees",
        "the dog sees a cat with",
        "",
    ],
)
def test_the_parser_refuses_everything_else(text: str) -> None:
    assert not explainer.is_grammatical(text.split())


def test_random_strings_are_grammatical_well_under_one_per_cent() -> None:
    rng = random.Random(0)
    lengths = [len(explainer.write_sentence(rng)) for _ in range(5000)]
    strings = [rng.choices(explainer.WORDS, k=length) for length in lengths]
    shuffled = [rng.sample(words, len(words)) for words in (explainer.write_sentence(rng) for _ in range(5000))]

    assert sum(map(explainer.is_grammatical, strings)) <= 5
    assert sum(map(explainer.is_grammatical, shuffled)) <= 250


@pytest.mark.parametrize(("stop_at", "length"), [(3, 2), (None, 7)])
def test_sampling_ends_at_a_stop_or_at_the_context(stop_at: int | None, length: int) -> None:
    def always(rows: Tensor) -> Tensor:
        """Logits that are sure of word 1, or of a stop."""
        z: Tensor = torch.full((*rows.shape, 5), -1e9)
        z[..., explainer.STOP if rows.shape[1] == stop_at else 1] = 0
        return z

    assert explainer.sample(always, 3, 1.0, 8, generator(0)) == [[explainer.WORDS[0]] * length] * 3
