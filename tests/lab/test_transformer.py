"""The small transformers: what may flow where, and that they learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from reproductions.lab import digits
from reproductions.lab.copying import reversal
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, train
from reproductions.lab.transformer import Block, TinyGPT, TinyViT, init_weights

if TYPE_CHECKING:
    from collections.abc import Iterator


def tiny_gpt(**options: object) -> TinyGPT:
    return init_model(lambda: TinyGPT(11, 16, 2, 4, 12, **options), 1).double()  # type: ignore[arg-type]


def tokens(n: int = 2, length: int = 12) -> Tensor:
    return torch.randint(0, 11, (n, length), generator=generator(2))


def test_a_block_is_torch_s_pre_norm_layer_with_the_same_weights() -> None:
    ours = init_model(lambda: Block(8, 2), 1).double()
    theirs = nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    state = ours.state_dict()
    inputs = [state[f"attn.{name}_proj.weight"] for name in "qkv"]
    biases = [state[f"attn.{name}_proj.bias"] for name in "qkv"]
    renamed = {
        "self_attn.in_proj_weight": torch.cat(inputs),
        "self_attn.in_proj_bias": torch.cat(biases),
        "self_attn.out_proj.weight": state["attn.o_proj.weight"],
        "self_attn.out_proj.bias": state["attn.o_proj.bias"],
    }
    for kind in ("weight", "bias"):
        renamed |= {f"linear{n}.{kind}": state[f"mlp.fc{n}.{kind}"] for n in (1, 2)}
        renamed |= {f"norm{n}.{kind}": state[f"ln{n}.{kind}"] for n in (1, 2)}
    theirs.load_state_dict(renamed)
    x = torch.randn(2, 5, 8, generator=generator(3), dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-10, rtol=0)


@pytest.mark.parametrize("token_shift", [False, True])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "none"])
def test_a_causal_model_cannot_see_the_future(token_shift: bool, positions: str) -> None:
    model = tiny_gpt(token_shift=token_shift, positions=positions)
    text = tokens()
    changed = text.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 11
    first, second = model(text), model(changed)
    assert first.shape == (2, 12, 11)
    torch.testing.assert_close(first[:, :6], second[:, :6], atol=1e-12, rtol=0)
    assert (first[:, 6:] - second[:, 6:]).abs().min(-1).values.min() > 0


def test_the_encoder_twin_sees_both_sides() -> None:
    model = tiny_gpt(causal=False)
    text = tokens()
    changed = text.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 11
    assert (model(text)[:, 0] - model(changed)[:, 0]).abs().max() > 1e-6


def test_without_positions_the_encoder_knows_no_order() -> None:
    model = tiny_gpt(causal=False, positions="none")
    order = torch.randperm(12, generator=generator(4))
    text = tokens()
    torch.testing.assert_close(model(text[:, order]), model(text)[:, order], atol=1e-10, rtol=0)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_positions_tell_the_encoder_the_order(positions: Literal["learned", "sinusoidal"]) -> None:
    model = tiny_gpt(causal=False, positions=positions)
    text = tokens()
    assert (model(text.flip(1)) - model(text).flip(1)).abs().max() > 1e-3


def test_token_shift_shows_each_position_its_predecessor_only() -> None:
    model = tiny_gpt(token_shift=True)
    text = tokens()
    changed = text.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 11
    moved = (model.embed(text) - model.embed(changed)).abs().amax((0, 2)) > 0
    assert moved.nonzero().flatten().tolist() == [3, 4]


def test_logits_are_the_head_on_the_hidden_states_of_the_embeddings() -> None:
    model = tiny_gpt(token_shift=True)
    text = tokens()
    assert torch.equal(model(text), model.head(model.hidden(text)))
    assert torch.equal(model.hidden(text), model.encode(model.embed(text)))


def test_a_mask_reaches_every_block() -> None:
    model = tiny_gpt(causal=False)
    text = tokens()
    kept = (torch.arange(12) < 7).view(1, 1, 1, 12)
    torch.testing.assert_close(model(text, kept)[:, :7], model(text[:, :7]), atol=1e-12, rtol=0)


def test_attention_can_be_swapped() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
            return x.mean(1, keepdim=True).expand_as(x)

    model = tiny_gpt()
    for block in model.blocks:
        block.attn = Mean()
    assert model(tokens()).shape == (2, 12, 11)


def test_initial_weights_have_the_stated_spread_and_no_bias() -> None:
    linear, embedding = nn.Linear(64, 256), nn.Embedding(300, 64)
    init_model(lambda: init_weights(nn.ModuleList([linear, embedding]), 64), 1)
    assert linear.weight.std().item() == pytest.approx(0.1, rel=0.03)
    assert embedding.weight.std().item() == pytest.approx(0.1, rel=0.03)
    assert linear.bias.abs().max() == 0


def test_patches_are_cut_row_by_row() -> None:
    model = TinyViT(3, d=8, patch=2, image=4, channels=2)
    images = torch.arange(32.0).view(1, 2, 4, 4)
    patches = model.patches(images)
    assert patches.shape == (1, 4, 8)
    assert patches[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]


def test_grey_images_need_no_channel() -> None:
    model = init_model(lambda: TinyViT(10), 1)
    images, _ = digits.load()
    assert torch.equal(model(images[:3]), model(images[:3, None]))
    assert model(images[:3]).shape == (3, 10)
    assert torch.equal(model(images[:3]), model.head(model.features(images[:3])))


def test_a_small_vision_transformer_learns_digits() -> None:
    images, labels = digits.load()
    training, test = digits.split(1, (800, 400))
    model = init_model(lambda: TinyViT(10, d=32), 1)
    train(
        model,
        lambda index: cross_entropy(model(images[index]), labels[index]),
        (training[index] for index in digits.batches(800, 64, 150, generator(1))),
        lr=3e-3,
        steps=150,
        warmup=10,
        schedule="cosine",
    )
    with torch.no_grad():
        assert accuracy(model(images[test]), labels[test]) > 0.9


def test_a_small_language_model_learns_to_reverse() -> None:
    rng = generator(1)
    model = init_model(lambda: TinyGPT(9, 32, 2, 4, 12), 1)

    def batches() -> Iterator[Tensor]:
        while True:
            yield reversal(64, 6, 8, rng)[0]

    def loss(text: Tensor) -> Tensor:
        return cross_entropy(model(text[:, :-1])[:, 6:].flatten(0, 1), text[:, 7:].flatten())

    train(model, loss, batches(), lr=5e-3, steps=200, warmup=20)
    text, answers = reversal(200, 6, 8, rng)
    with torch.no_grad():
        assert accuracy(model(text[:, :-1])[:, 6:], answers) > 0.95
