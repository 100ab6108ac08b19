"""The world and the switches: exact segmentation, units silenced or set, effects of a generator made by hand."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.energy import energy_distance  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

dissection = load("background/generative-models/gan-dissection.py")

CHOOSING = 128  # latents on which `measured` has the units chosen


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads are slower on tensors this small, and far slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Painter:
    """A generator made by hand: unit 0 paints houses, 1 suns, 2 trees; 3 and 4 stand in for each other as twins of 0."""

    forced = inf  # the height above which a unit paints in the other half too

    def __init__(self, twins: bool = False) -> None:
        self.twins = twins

    def paint(self, r: Tensor) -> Tensor:
        """Images (B, 3, 8, 8) of r (B, 32, 4, 4): a unit above 1 colours its place."""
        on = torch.nn.functional.interpolate(r, scale_factor=2)
        if self.twins:
            on[:, 0] = on[:, 3] + on[:, 4]
        kind = torch.full((len(r), 8, 8), 3)
        kind[:, dissection.HORIZON :] = 4
        for c in range(3):
            ground = torch.arange(8)[:, None] >= dissection.HORIZON
            kind[(on[:, c] > 1) & ((on[:, c] > self.forced) | (ground == dissection.ON_GROUND[c]))] = c
        image: Tensor = dissection.COLOURS[kind].permute(0, 3, 1, 2)
        return image


class Quartet(Painter):
    """A trained generator made by hand: objects at fixed places in the right share of scenes, four units for each.

    Unit c + 3 j paints cell j of object c; units 20 to 23 are on everywhere and paint nothing.
    """

    def __init__(
        self, *, house: float = 2.0, idle: float = 9.0, shares: tuple[float, ...] = dissection.FREQUENCY
    ) -> None:
        super().__init__()
        self.house, self.idle, self.shares = house, idle, shares

    def activations(self, z: Tensor) -> Tensor:
        """Maps r (B, 32, 4, 4)."""
        r: Tensor = torch.zeros(len(z), 32, 4, 4)
        there = torch.special.ndtr(z[:, :3]) < torch.tensor(self.shares)
        for c, (top, left) in enumerate(((2, 0), (0, 0), (2, 2))):
            for j in range(4):
                r[there[:, c], c + 3 * j, top + j // 2, left + j % 2] = self.house if c == 0 else 2.0
        r[:, 20:24] = self.idle
        return r

    def paint(self, r: Tensor) -> Tensor:
        """An object is wherever one of its units is on."""
        merged = torch.zeros_like(r)
        merged[:, :3] = r[:, :12].view(-1, 4, 3, 4, 4).amax(1)
        image: Tensor = super().paint(merged)
        return image

    def __call__(self, z: Tensor) -> Tensor:
        """Images (B, 3, 8, 8) of latents z (B, 16)."""
        return self.paint(self.activations(z))


class Placeless(Quartet):
    """The same, but later layers that paint an object anywhere."""

    forced = 0.0


class Peaked(Quartet):
    """The same, but units that are four times as high in a tenth of the scenes, which is too high to heed the place."""

    forced = 5.0

    def activations(self, z: Tensor) -> Tensor:
        """Maps r (B, 32, 4, 4)."""
        r = super().activations(z)
        r[z[:, 3] > 1.3] *= 4
        return r


class Drifting(Quartet):
    """The same, but units of the house that are moderate on the latents of choosing and the highest on all others."""

    forced = 5.0

    def activations(self, z: Tensor) -> Tensor:
        """Maps r (B, 32, 4, 4)."""
        self.house, self.idle = (2.0, 9.0) if len(z) == CHOOSING else (200.0, 0.0)
        return super().activations(z)


def measured(monkeypatch: pytest.MonkeyPatch, painter: Quartet, **sizes: Any) -> Any:
    """What `run` finds in a generator made by hand."""
    monkeypatch.setattr(dissection, "fit", lambda *_: painter)
    usual = replace(dissection.Settings(), curve=(4,), choosing=CHOOSING, testing=256, draws=1)
    return dissection.run(0, replace(usual, **sizes))


def shares_of_four(result: Any) -> dict[str, float]:
    """The share of pixels that each arm removes with four units."""
    return {row["arm"]: row["share"] for row in result.rows if row["panel"] == "removed" and row["units"] == 4}


def insertion_rates(result: Any) -> dict[tuple[str, str], float]:
    """How often each object appears, by object and zone."""
    return {(row["object"], row["zone"]): row["rate"] for row in result.rows if row["panel"] == "inserted"}


def maps(**units: float) -> Tensor:
    """Activations (2, 32, 4, 4), 0 but for the named units u0, u1, ..."""
    r: Tensor = torch.zeros(2, 32, 4, 4)
    for name, height in units.items():
        r[:, int(name[1:])] = height
    return r


def test_objects_have_their_size_place_and_frequency_and_nothing_else_has_their_colour() -> None:
    objects = dissection.segment(dissection.scenes(4000, generator(0)))
    pixels = objects.sum((2, 3))

    assert [pixels[:, c].unique().tolist() for c in range(3)] == [[0, 9], [0, 4], [0, 6]]
    assert (pixels > 0).float().mean(0).tolist() == pytest.approx(list(dissection.FREQUENCY), abs=0.03)
    assert not objects[:, [0, 2], : dissection.HORIZON].any()
    assert not objects[:, 1, dissection.HORIZON :].any()
    assert objects.sum(1).max() == 1


def test_house_and_tree_stand_on_different_sides_and_each_side_has_its_turn() -> None:
    objects = dissection.segment(dissection.scenes(4000, generator(0)))
    house, _, tree = objects.any((2, 3)).T
    house_left, _, tree_left = objects[..., : dissection.SIDE // 2].any((2, 3)).T

    assert house_left[house].float().mean() == pytest.approx(0.5, abs=0.05)
    assert not (house_left == tree_left)[house & tree].any()


def test_a_blend_of_two_colours_belongs_to_no_object() -> None:
    house, sun = dissection.COLOURS[[0, 1]]
    image = torch.stack([house, (house + sun) / 2, sun], 1).view(1, 3, 1, 3)
    marked = dissection.segment(image)[0, :, 0].int()

    assert marked.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_silencing_changes_the_named_units_alone_and_not_the_original() -> None:
    r = torch.rand(3, 32, 4, 4, generator=generator(0)) + 0.1
    before = r.clone()
    off = dissection.silenced(r, [2, 5])

    assert torch.equal(r, before)
    assert (off == 0).flatten(2).all(2)[0].nonzero()[:, 0].tolist() == [2, 5]
    kept = [u for u in range(32) if u not in (2, 5)]
    assert torch.equal(off[:, kept], r[:, kept])


def test_the_effect_is_the_pixels_that_go_with_a_unit() -> None:
    effect = dissection.causal_effect(Painter(), maps(u0=2, u1=2, u7=9))

    assert effect[0].tolist() == [32, 0, 0]
    assert effect[1].tolist() == [0, 32, 0]
    assert effect[2:].abs().sum() == 0


def test_units_that_stand_in_for_each_other_have_an_effect_only_together() -> None:
    r, painter = maps(u3=1.2, u4=1.2), Painter(twins=True)

    assert dissection.causal_effect(painter, r).abs().sum() == 0
    assert dissection.removed(painter, r, [3, 4]).tolist() == [1, 0, 0]


def test_removed_is_a_share_per_object_and_nothing_without_units() -> None:
    r = maps(u0=2, u1=2)
    r[0, 0] = 0

    assert dissection.removed(Painter(), r, [0]).tolist() == [1, 0, 0]
    assert dissection.removed(Painter(), r, [1]).tolist() == [0, 1, 0]
    assert dissection.removed(Painter(), r, []).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("c", "ground", "rate"), [(0, True, 1), (0, False, 0), (1, True, 0), (1, False, 1)])
def test_an_object_appears_only_where_the_later_layers_allow_it(c: int, ground: bool, rate: float) -> None:
    r, units, high = maps(), torch.tensor([c]), torch.tensor([2.0])

    assert dissection.inserted(Painter(), r, c, units, high, ground, generator(0)) == rate
    assert r.sum() == 0


def test_an_object_that_comes_up_in_the_other_half_than_its_units_does_not_count() -> None:
    class Upturned(Painter):
        """What a unit paints comes up in the other half."""

        def paint(self, r: Tensor) -> Tensor:
            return super().paint(r.flip(2))

    r, units, high = maps(), torch.tensor([0]), torch.tensor([2.0])
    r[:, 0, 0, 0] = 2

    assert dissection.removed(Upturned(), r, [0])[0] == 1  # so it does paint a house on the ground
    assert dissection.inserted(Upturned(), maps(), 0, units, high, False, generator(0)) == 0  # noqa: FBT003


def test_two_pixels_of_an_object_are_not_yet_an_object() -> None:
    class Striped(Painter):
        """Every other column is sky, so 2 of 4 pixels are left."""

        def paint(self, r: Tensor) -> Tensor:
            image = super().paint(r).clone()
            image[..., 1::2] = dissection.COLOURS[3][:, None, None]
            return image

    r, units, high = maps(), torch.tensor([0]), torch.tensor([2.0])

    assert dissection.inserted(Striped(), r, 0, units, high, True, generator(0)) == 0  # noqa: FBT003


def test_scenes_that_have_the_object_already_do_not_count_as_insertions() -> None:
    r, units, high = maps(u0=2), torch.tensor([9]), torch.tensor([2.0])

    assert dissection.inserted(Painter(), r, 0, units, high, True, generator(0)) == 0  # noqa: FBT003


def test_the_generator_paints_from_its_units_alone() -> None:
    G = init_model(dissection.Generator, 0)
    z = torch.randn(4, dissection.Z, generator=generator(0))
    r = G.activations(z)

    assert r.shape == (4, dissection.UNITS, 4, 4)
    assert r.min() == 0
    assert torch.equal(G.paint(r), G(z))


def test_units_are_chosen_and_tested_on_different_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {"causal_effect": [], "removed": []}

    def spied(name: str) -> Callable[..., Any]:
        real = getattr(dissection, name)

        def called(network: Any, r: Tensor, *rest: Any) -> Any:
            seen[name].append(r)
            return real(network, r, *rest)

        return called

    for name in seen:
        monkeypatch.setattr(dissection, name, spied(name))
    dissection.run(0, replace(dissection.SHORT, steps=1))
    chosen = {tuple(row.flatten()[:64].tolist()) for r in seen["causal_effect"] for row in r}

    assert seen["removed"]
    assert not any(tuple(row.flatten()[:64].tolist()) in chosen for r in seen["removed"] for row in r)


def test_the_metrics_of_a_generator_whose_units_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = measured(monkeypatch, Quartet()).metrics

    assert metrics["removed_top"] == 1
    assert metrics["removed_others"] == 0
    assert metrics["context_gap"] > 0.85  # a tree may stand where a house is wanted
    assert 1 <= metrics["freq_gate"] < 1.15


def test_the_figure_shows_objects_in_their_own_zone_and_not_in_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    result = measured(monkeypatch, Quartet())
    rates = insertion_rates(result)
    gaps = [rates[name, "own"] - rates[name, "other"] for name in dissection.OBJECTS]

    assert min(gaps) > 0.5
    assert result.metrics["context_gap"] == pytest.approx(sum(gaps) / 3)


def test_units_are_inserted_at_a_usual_height_and_not_at_their_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = insertion_rates(measured(monkeypatch, Peaked()))

    for name in dissection.OBJECTS:
        assert rates[name, "own"] > 0.5
        assert rates[name, "other"] == 0


def test_what_is_usual_on_the_latents_of_testing_decides_no_height(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = insertion_rates(measured(monkeypatch, Drifting()))

    assert rates["house", "own"] > 0.5
    assert rates["house", "other"] == 0


def test_the_most_active_units_are_those_of_the_latents_of_choosing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares_of_four(measured(monkeypatch, Drifting()))["active"] == 0


def test_many_random_orders_agree_on_the_share_of_four_units_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single order removes a multiple of 1/12, which is never that near to 4/32."""
    result = measured(monkeypatch, Quartet(), draws=200, testing=16)

    assert shares_of_four(result)["random"] == pytest.approx(4 / 32, abs=0.03)


def test_no_context_is_found_where_the_later_layers_do_not_look_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a later object covers the new one the rate is 0.75, so the gap of the sun is 0.25."""
    result = measured(monkeypatch, Placeless(), testing=1024)

    assert min(insertion_rates(result).values()) > 0.6
    assert abs(result.metrics["context_gap"]) < 0.2


def test_the_control_is_the_more_damaging_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the most active units paint nothing, once they are all the units of the house."""
    for painter, active in ((Quartet(), 0), (Quartet(house=200.0, idle=0.0), 1 / 3)):
        result = measured(monkeypatch, painter, draws=10)
        shares = shares_of_four(result)

        assert shares["active"] == pytest.approx(active)
        assert 0.03 < shares["random"] < 0.25
        assert result.metrics["removed_control"] == max(shares["random"], shares["active"])


@pytest.mark.parametrize(("shares", "gate"), [((0.6, 0.25, 0.5), 2), ((1, 0.5, 0.5), 1 / 0.6), ((0.6, 0.5, 0), 500)])
def test_the_gate_counts_the_object_of_the_worst_frequency(
    shares: tuple[float, ...], gate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = measured(monkeypatch, Quartet(shares=shares)).metrics

    assert metrics["freq_gate"] == pytest.approx(gate, rel=0.2)


def test_an_object_that_never_appears_has_no_pixels_to_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = measured(monkeypatch, Quartet(shares=(0.6, 0.5, 0))).metrics

    assert metrics["removed_top"] == pytest.approx(2 / 3)


def test_training_brings_samples_nearer_to_the_scenes() -> None:
    z, gen = torch.randn(300, dissection.Z, generator=generator(0)), generator(1)
    real = dissection.scenes(300, gen).flatten(1)
    start = init_model(dissection.Generator, 0, "generator").requires_grad_(requires_grad=False)
    trained = dissection.fit(0, replace(dissection.SHORT, steps=60))

    assert energy_distance(trained(z).flatten(1), real) < 0.7 * energy_distance(start(z).flatten(1), real)


def test_training_uses_the_penalty_and_the_mean_of_the_weights() -> None:
    plain, freer, last = (
        dissection.fit(0, replace(dissection.SHORT, **other)).units.weight for other in ({}, {"gamma": 0}, {"decay": 0})
    )

    assert not torch.equal(plain, freer)
    assert not torch.equal(plain, last)


def test_the_discriminator_judges_each_image_by_itself() -> None:
    D = init_model(dissection.Discriminator, 0)
    images = dissection.scenes(6, generator(0))

    assert D(images).shape == (6,)
    torch.testing.assert_close(D(images)[:2], D(images[:2]))
