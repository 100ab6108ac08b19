"""ControlNet starts as the base it joins, learns from the first update on, and leaves the base as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from reproductions.lab.denoiser import MLPDenoiser  # noqa: E402
from reproductions.lab.seeding import generator, init_model  # noqa: E402
from tests.reproductions.loading import load  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

controlnet = load("diffusion/image-generation/controlnet.py")
SIZES = controlnet.SHORT


@pytest.fixture
def base() -> MLPDenoiser:
    """One whose output depends on its blocks."""
    model: MLPDenoiser = init_model(MLPDenoiser, 0)
    torch.nn.init.normal_(model.fc_out.weight, std=0.1, generator=generator(0, "out"))
    return model


def digits(n: int) -> tuple[Tensor, Tensor]:
    pixels, labels = controlnet.load((-1.0, 1.0))
    return pixels[:n].flatten(1), labels[:n]


def inputs(n: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy images, times, classes and silhouettes, in float64."""
    x = torch.randn(n, 64, generator=generator(0, "x"), dtype=torch.float64)
    time = torch.rand(n, generator=generator(0, "time"), dtype=torch.float64)
    return x, time, torch.arange(n) % 10, (x > 0).double()


def test_with_zero_joints_the_network_is_exactly_the_base(base: MLPDenoiser) -> None:
    x, time, tokens, c = inputs()
    net = controlnet.joined(base, 0.0, 0).double()

    assert torch.equal(net(x, time, tokens, c), base.double()(x, time, tokens))


def test_gaussian_joints_or_a_nonzero_bias_would_be_seen(base: MLPDenoiser) -> None:
    assert controlnet.largest_difference(controlnet.joined(base, 0.0, 0), base, generator(0)) == 0
    assert controlnet.largest_difference(controlnet.joined(base, 1 / 16, 0), base, generator(0)) > 1e-2
    net = controlnet.joined(base, 0.0, 0)
    torch.nn.init.constant_(net.z_out[0].bias, 0.1)
    assert controlnet.largest_difference(net, base, generator(0)) > 1e-3


def test_the_first_gradient_reaches_the_outer_joints_only_and_the_second_all(base: MLPDenoiser) -> None:
    x, time, tokens, c = inputs()
    net = controlnet.joined(base, 0.0, 0).double()
    inner = [net.z_in.weight, *(block.weight for block in net.copies)]

    def gradients() -> None:
        net.zero_grad()
        net(x, time, tokens, c).square().sum().backward()

    gradients()
    assert all(joint.weight.grad.abs().max() > 0 for joint in net.z_out)
    assert all(weight.grad.abs().max() == 0 for weight in inner)

    with torch.no_grad():
        for joint in net.z_out:
            joint.weight -= 1e-3 * joint.weight.grad
    gradients()
    assert all(weight.grad.abs().max() > 0 for weight in inner)


def test_the_copy_starts_as_the_blocks_and_the_base_never_moves(base: MLPDenoiser) -> None:
    images, classes = digits(20)
    net = controlnet.joined(base, 0.0, 0)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(net.copies, base.blocks, strict=True))
    assert all(parameter.requires_grad for parameter in net.copies.parameters())

    controlnet.fit_control(net, images, classes, 1e-2, 0, SIZES)
    assert all(torch.equal(a, b) for a, b in zip(net.base.parameters(), base.parameters(), strict=True))
    assert not torch.equal(net.copies[0].weight, base.blocks[0].weight)
    assert net.z_in.weight.abs().max() > 0


def test_snapshots_are_taken_before_the_update_that_they_are_named_after(base: MLPDenoiser) -> None:
    images, classes = digits(20)
    net = controlnet.joined(base, 0.0, 0)
    kept = controlnet.fit_control(net, images, classes, 1e-2, 0, SIZES)

    assert [update for update, _ in kept] == list(SIZES.watched)
    assert controlnet.largest_difference(kept[0][1], base, generator(0)) == 0
    assert controlnet.largest_difference(kept[1][1], base, generator(0)) > 0


def test_gaussian_joints_have_the_scale_of_a_usual_layer(base: MLPDenoiser) -> None:
    net = controlnet.joined(base, controlnet.WIDTH**-0.5, 0)

    assert [float(joint.weight.detach().std()) for joint in net.z_out] == [pytest.approx(1 / 16, rel=0.02)] * 3
    assert float(net.z_out[0].bias.detach().abs().max()) == 0


def test_overlap_is_intersection_over_union_of_ink() -> None:
    ink = torch.full((2, 64), -1.0)
    ink[:, :4] = 1
    wanted = torch.zeros(2, 64)
    wanted[0, 2:6] = 1
    wanted[1, :4] = 1

    assert controlnet.overlap(ink, wanted) == pytest.approx((2 / 6 + 1) / 2)
    assert controlnet.overlap(ink, controlnet.silhouette(ink)) == 1


def test_pasted_silhouettes_are_told_from_digits_by_precision_and_not_by_recall() -> None:
    pixels, _ = controlnet.load((-1.0, 1.0))
    train_set, _, test_set = controlnet.fixed_split()
    real, test = pixels[train_set[:400]].flatten(1), pixels[test_set].flatten(1)
    pasted = 2 * controlnet.silhouette(test) - 1

    (precision, recall), (precision_pasted, recall_pasted) = (
        controlnet.precision_recall(images, real) for images in (test, pasted)
    )
    assert precision - precision_pasted > 0.5
    assert recall_pasted >= recall


def test_training_pairs_and_test_silhouettes_do_not_overlap() -> None:
    train_set, validation, test_set = (set(part.tolist()) for part in controlnet.fixed_split())

    assert not test_set & (train_set | validation)


def test_each_training_image_comes_with_its_own_silhouette(base: MLPDenoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    images, classes = digits(20)
    clean: list[Tensor] = []
    seen: list[Tensor] = []
    forward, loss = controlnet.ControlNet.forward, controlnet.noise_prediction_loss

    def watched_forward(self: Any, x: Tensor, time: Tensor, tokens: Tensor, c: Tensor) -> Any:
        seen.append(c)
        return forward(self, x, time, tokens, c)

    def watched_loss(model: Any, drawn: Tensor, *arguments: Any) -> Any:
        clean.append(drawn)
        return loss(model, drawn, *arguments)

    monkeypatch.setattr(controlnet.ControlNet, "forward", watched_forward)
    monkeypatch.setattr(controlnet, "noise_prediction_loss", watched_loss)
    controlnet.fit_control(controlnet.joined(base, 0.0, 0), images, classes, 1e-2, 0, SIZES)

    assert len(seen) == SIZES.updates
    assert all(torch.equal(c, controlnet.silhouette(drawn)) for c, drawn in zip(seen, clean, strict=True))


def test_metrics_compare_the_right_samples_of_arms_trained_on_pairs_and_asked_for_test_silhouettes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels, labels = controlnet.load((-1.0, 1.0))
    train_set, _, test_set = controlnet.fixed_split()
    known, test = pixels[train_set].flatten(1), pixels[test_set[: SIZES.scored]].flatten(1)
    wanted, c = labels[test_set[: SIZES.scored]], controlnet.silhouette(test)
    trained: list[tuple[Tensor, Tensor, float]] = []
    asked: list[Tensor] = []
    drawn: list[Tensor] = []
    fit, forward = controlnet.fit_control, controlnet.ControlNet.forward

    def watched_fit(net: Any, images: Tensor, classes: Tensor, lr: float, *arguments: Any) -> Any:
        trained.append((images, classes, lr))
        return fit(net, images, classes, lr, *arguments)

    def watched_forward(self: Any, x: Tensor, time: Tensor, tokens: Tensor, silhouettes: Tensor) -> Any:
        asked.append(silhouettes)
        return forward(self, x, time, tokens, silhouettes)

    def pretended_samples(model: Any, _: Any, tokens: Tensor, shape: tuple[int, int], *__: Any, **___: Any) -> Tensor:
        assert torch.equal(tokens, wanted)
        asked.clear()
        model(torch.zeros(shape), torch.ones(len(tokens)), tokens)
        last = len(drawn) == 9  # the base, after three snapshots of each of three arms
        assert (len(asked), last) in {(1, False), (0, True)}
        assert last or torch.equal(asked[0], c)
        drawn.append(test + (0.2 + 0.1 * len(drawn)) * torch.randn(shape, generator=generator(len(drawn))))
        return drawn[-1]

    monkeypatch.setattr(controlnet, "fit_control", watched_fit)
    monkeypatch.setattr(controlnet.ControlNet, "forward", watched_forward)
    monkeypatch.setattr(controlnet, "ddim_sample", pretended_samples)
    metrics = controlnet.run(0, replace(SIZES, lr_zero=1e-3, lr_gauss=2e-3)).metrics

    assert [lr for *_, lr in trained] == [1e-3, 2e-3, 2e-3]
    assert all(torch.equal(images, known[: SIZES.pairs]) for images, *_ in trained)
    assert all(torch.equal(classes, labels[train_set[: SIZES.pairs]]) for _, classes, _ in trained)
    _, zero_early, zero, _, gauss_early, gauss, *_, of_base = drawn
    recalls = [controlnet.precision_recall(images, known[: len(images)])[1] for images in (of_base, zero)]
    distance = {
        name: controlnet.judge_fid(images, known)
        for name, images in {"ze": zero_early, "z": zero, "ge": gauss_early, "g": gauss}.items()
    }
    assert recalls[0] != recalls[1]
    assert metrics["iou_gain"] == pytest.approx(controlnet.overlap(zero, c) - controlnet.overlap(of_base, c))
    assert metrics["acc"] == pytest.approx(controlnet.digit_judge().accuracy(zero, wanted))
    assert metrics["recall_drop"] == pytest.approx(recalls[0] - recalls[1])
    assert metrics["early_gap"] == pytest.approx(distance["ge"] - distance["ze"])
    assert metrics["late_gap"] == pytest.approx(distance["g"] - distance["z"])
