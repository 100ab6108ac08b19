"""The module is the block it grows out of until its branches part, and the two tasks ask what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from reproductions.lab.transformer import Block  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor, nn

owl2 = load("lmm/model-architectures/mplug-owl2.py")
SIZES = owl2.Settings()
TINY = owl2.Settings(d=8, wider=12)


def states() -> Tensor:
    """Random states (3, 10, 8) in float64."""
    drawn: Tensor = torch.randn(3, 10, 8, generator=generator(0), dtype=torch.float64)
    return drawn


def test_equal_branches_are_an_ordinary_block_and_the_visual_branch_is_used() -> None:
    error, control = owl2.identity(0, TINY)

    assert error <= 1e-12
    assert control > 1e-3


def test_nothing_else_comes_apart() -> None:
    module = owl2.ModalityAdaptiveBlock(Block(8, 4, causal=True))

    assert {name.split(".")[0] for name, _ in module.named_parameters() if ".1." in name} == {
        "ln1", "ln2", "k_proj", "v_proj",
    }  # fmt: skip
    # two matrices with their biases, and two layer norms of a weight and a bias
    assert count_parameters(module) - count_parameters(Block(8, 4)) == 2 * (8 * 8 + 8) + 4 * 8


@pytest.mark.parametrize("branch", ["ln1", "ln2", "k_proj", "v_proj"])
def test_each_modality_has_branches_of_its_own(branch: str) -> None:
    module = owl2.ModalityAdaptiveBlock(Block(8, 4, causal=True)).double()
    before = module(states(), 6)
    with torch.no_grad():
        getattr(module, branch)[owl2.VISUAL].weight.mul_(torch.linspace(0, 3, 8).double())
        after = module(states(), 6)

    assert (after - before)[:, :6].abs().max() > 1e-6
    torch.testing.assert_close(module(states(), 0), as_block(module)(states()))


def as_block(module: Any) -> Block:
    """An ordinary block with the layers that words go through."""
    block = Block(8, 4, causal=True).double()
    for name in ("ln1", "ln2"):
        setattr(block, name, getattr(module, name)[owl2.TEXT])
    block.mlp = module.mlp
    block.attn.q_proj, block.attn.o_proj = module.q_proj, module.o_proj
    block.attn.k_proj, block.attn.v_proj = module.k_proj[owl2.TEXT], module.v_proj[owl2.TEXT]
    return block


def test_all_arms_start_from_the_same_decoder() -> None:
    shared = init_model(lambda: owl2.Owl(8, TINY), 0).double()
    module = init_model(lambda: owl2.Owl(8, TINY, module=True), 0).double()
    features, question, _ = owl2.images(5, 0, 3, TINY, generator(1))

    torch.testing.assert_close(module(features.double(), question), shared(features.double(), question))
    torch.testing.assert_close(module(None, owl2.sums(torch.arange(5))[0]), shared(None, owl2.sums(torch.arange(5))[0]))


def test_the_answer_counts_the_patches_of_the_class_asked_for() -> None:
    quiet = owl2.Settings(noise=0.0)
    features, question, count = owl2.images(2000, 3, 3, quiet, generator(2))
    centroids = torch.randn(4, 24, generator=generator(3, "centroids"))
    centroids[:, :3] *= 20
    asked = centroids[question[:, 0] - owl2.QUESTION][:, None]

    assert torch.equal(((features - asked).abs().amax(-1) < 1e-3).sum(1), count)
    assert count.bincount(minlength=10).min() > 140  # each of the ten numbers comes as often


def test_large_features_are_larger_and_their_removal_changes_nothing_else() -> None:
    large, even = (owl2.images(50, 0, dims, SIZES, generator(4)) for dims in (3, 0))

    torch.testing.assert_close(large[0][..., :3], 20 * even[0][..., :3])
    assert torch.equal(large[0][..., 3:], even[0][..., 3:])
    assert torch.equal(large[2], even[2])


def test_normalised_inputs_undo_the_large_features() -> None:
    large, even = (owl2.images(500, 0, dims, TINY, generator(5)) for dims in (3, 0))

    def normalised(features: Tensor) -> nn.Module:
        seen = features.flatten(0, 1)
        model: nn.Module = init_model(lambda: owl2.Owl(8, TINY, norm=(seen.mean(0), seen.std(0))), 0)
        return model

    torch.testing.assert_close(normalised(large[0])(*large[:2]), normalised(even[0])(*even[:2]), atol=1e-4, rtol=1e-4)


def test_the_wider_decoder_is_as_large_as_the_module() -> None:
    module, wider = (
        count_parameters(owl2.Owl(d, SIZES, module=m).blocks) for d, m in ((SIZES.d, True), (SIZES.wider, False))
    )

    assert abs(wider / module - 1) < 0.01


def test_all_sums_are_right() -> None:
    words, total = owl2.sums(torch.arange(121))

    assert len(words.unique(dim=0)) == 121
    assert torch.equal((words[:, 0] + words[:, 1]) % 11, total)
    assert (words[:, 2] == owl2.EQUALS).all()
