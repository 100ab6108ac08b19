"""Ranks and cuts of changes, points on curves, and text of which no entry is on both sides."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.characters import fold, texts  # noqa: E402
from reproductions.lab.lora import LoRALinear  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from reproductions.lab.training import count_parameters  # noqa: E402
from reproductions.lab.transformer import TinyGPT  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

less = load("llm/efficient-finetuning/lora-learns-less.py")


def model() -> TinyGPT:
    return init_model(lambda: TinyGPT(20, 16, 2, 4, 8), 0)


@pytest.mark.parametrize(
    ("values", "rank"), [([3, 2, 1, 1, 1], 4), ([3, 1, 0, 0, 0], 1), ([1, 1, 1, 1, 1], 5), ([2, 0, 0, 0, 0], 1)]
)
def test_the_rank_that_holds_90_percent_of_the_squared_norm(values: list[float], rank: int) -> None:
    Q, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator(0), dtype=torch.float64))

    assert less.rank90(Q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ Q.T) == rank


def test_nothing_of_that_rank_is_nearer_than_the_cut() -> None:
    change = torch.randn(9, 6, generator=generator(0), dtype=torch.float64)
    cut = less.best_of_rank(change, 2)

    assert torch.linalg.matrix_rank(cut) == 2
    tail = torch.linalg.svdvals(change)[2:].square().sum().sqrt()  # Eckart and Young
    torch.testing.assert_close((change - cut).norm(), tail, atol=1e-12, rtol=0)


def test_a_cut_at_full_rank_gives_back_the_tuned_model_and_at_rank_zero_the_base() -> None:
    base = model()
    tuned = less.free_matrices(base)
    for number, layer in enumerate(less.matrices(tuned).values()):
        layer.weight.data += torch.randn(layer.weight.shape, generator=generator(number))
    tokens = torch.arange(8)[None]

    torch.testing.assert_close(less.cut(base, tuned, 16)(tokens), tuned(tokens), atol=1e-4, rtol=0)
    torch.testing.assert_close(less.cut(base, tuned, 0)(tokens), base(tokens), atol=1e-6, rtol=0)
    assert (less.cut(base, tuned, 4)(tokens) - tuned(tokens)).abs().max() > 0.1


def test_both_ways_of_tuning_move_the_same_twelve_matrices_and_nothing_else() -> None:
    base = model()
    full, lora = less.free_matrices(base), less.with_lora(base, 4, 0)
    freed = {name for name, p in full.named_parameters() if p.requires_grad}
    adapted = {f"{name}.weight" for name, layer in lora.named_modules() if isinstance(layer, LoRALinear)}

    assert len(freed) == 12
    assert freed == adapted
    assert count_parameters(lora, trainable_only=True) == 4 * 2 * (4 * (16 + 16) + 2 * (16 + 64))
    assert torch.equal(lora(torch.arange(8)[None]), base(torch.arange(8)[None]))
    assert not any(p.requires_grad for name, p in copy.deepcopy(lora).named_parameters() if "embedding" in name)


@pytest.mark.parametrize(("spanish", "english"), [(3.0, 1.0), (2.5, 1.5), (2.0, 2.0), (1.5, 2.1), (0.5, 2.2)])
def test_a_curve_is_read_where_it_first_comes_down_to_a_loss(spanish: float, english: float) -> None:
    curve = [(0, 3.0, 1.0), (1, 2.0, 2.0), (2, 1.0, 2.2), (3, 1.5, 2.2)]

    assert less.english_at(curve, spanish) == pytest.approx(english)


def test_held_out_entries_are_seen_in_neither_language() -> None:
    settings = less.Settings()
    vocab, training, rows = less.bilingual(0, settings)
    alphabet = less.Characters.of([fold(document).text for document in texts("en")])

    assert alphabet.size >= vocab
    for language in less.LANGUAGES:
        assert int(max(training[language].max(), rows[language].max())) < vocab - 1
        assert rows[language].shape[1] == settings.length + 1
        assert 0.9 * settings.characters < rows[language].numel() < 1.1 * settings.characters
        stretches = training[language].unfold(0, settings.length + 1, 1)
        assert not any((stretches == row).all(1).any() for row in rows[language][::20])
    english, spanish = (less.split_by_entry(list(map(fold, texts(name))), 0.25, 0)[1] for name in ("en", "es"))
    assert [document.slug for document in english] == [document.slug for document in spanish]
