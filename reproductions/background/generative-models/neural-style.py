"""Neural style transfer: the content of one image in the style of another, by the features of a CNN (arXiv:1508.06576).

Symbols: x image that is made (3, H, W), RGB in [0, 1] · F, P features of x and of the content image in one layer, a row
per filter and a column per position (N, M) · G, A Gram matrices F F^T of x and of the style image (N, N) ·
alpha, beta weights of content and style in the loss · w weight of a layer in the style loss
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F_
from scipy.stats import spearmanr
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train

TEXTURES = 12


@dataclass(frozen=True)
class Settings:
    """Sizes of the design; the ratios cover three decades, and the middle one is `judged` against the blends."""

    side: int = 48
    shrink: int = 4
    widths: tuple[int, ...] = (24, 48, 48)
    judge_widths: tuple[int, ...] = (20, 40, 56)
    train_steps: int = 150
    batch: int = 32
    texture_side: int = 24
    lr_network: float = 2e-2  # of 1e-3, 3e-3, 1e-2 and 2e-2, by accuracy on new textures, pilot seeds 0 and 1
    pixel_steps: int = 120
    lr_pixels: float = 0.03
    ratios: tuple[float, ...] = (1e2, 6e2, 3e3, 2e4, 1e5)  # beta / alpha
    judged: int = 2
    largest_ratio: float = 5.0
    blends: int = 41
    shown: tuple[int, ...] = (0, 2, 4)
    shown_side: int = 32


SHORT = Settings(train_steps=2, batch=12, pixel_steps=2, blends=5)


class TextureCNN(nn.Module):
    """Three convolutions of 3 x 3 with ReLU, average pooling in between, and a head for 12 textures."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        inputs = (3, *widths[:-1])
        convolutions = [
            nn.Conv2d(a, b, 3, padding=1, padding_mode="reflect") for a, b in zip(inputs, widths, strict=True)
        ]
        for layer in convolutions:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.layers = nn.ModuleList(convolutions)
        self.head = nn.Linear(widths[-1], TEXTURES)
        self.size: Tensor
        self.register_buffer("size", torch.ones(len(widths)))

    def features(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to feature maps F of each layer, (B, N, M) with M halved twice in each pooling."""
        maps: list[Tensor] = []
        h = 2 * x - 1
        for layer, size in zip(self.layers, self.size, strict=True):
            h = layer(F_.avg_pool2d(h, 2) if maps else h).relu()
            maps.append((h / size).flatten(2))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits (B, 12)."""
        logits: Tensor = self.head(self.features(x)[-1].mean(-1))
        return logits


def textures(kinds: Tensor, side: int, gen: torch.Generator) -> Tensor:
    """Procedural textures of the given kinds (n,) in two random colours each: (n, 3, side, side).

    Kinds 0-7 are waves in 4 directions and 2 wavelengths, 8 a chequerboard, 9 dots, 10 fine noise, 11 coarse noise.
    """
    n = len(kinds)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    phase = 2 * torch.pi * torch.rand(2, n, 1, 1, generator=gen)
    angle = (kinds % 4 * torch.pi / 4 + 0.1 * torch.randn(n, generator=gen))[:, None, None]
    frequency = (2 * torch.pi / torch.where(kinds < 4, 4.0, 9.0))[:, None, None]
    wave = (frequency * (angle.cos() * columns + angle.sin() * rows) + phase[0]).sin()
    across, down = (torch.pi / 4 * columns + phase[0]).sin(), (torch.pi / 4 * rows + phase[1]).sin()
    fine = torch.randn(n, side, side, generator=gen)
    coarse = 5 * F_.avg_pool2d(fine[:, None], 5, stride=1, padding=2)[:, 0]
    others = torch.stack([(across * down).sign(), 6 * across * down - 3, fine, coarse])  # (4, n, side, side)
    k = kinds[:, None, None]
    pattern = torch.where(k < 8, wave, others[(kinds - 8).clamp(min=0), torch.arange(n)])
    share = torch.sigmoid(2 * pattern)[:, None]  # (n, 1, side, side)
    one = torch.rand(n, 3, 1, 1, generator=gen)
    two = (one + 0.5) % 1
    return share * one + (1 - share) * two


def texture_network(widths: tuple[int, ...], seed: int, name: str, settings: Settings) -> TextureCNN:
    """Train a network to tell the textures apart, freeze it, and scale each layer to a mean activation of 1."""
    net, gen = init_model(lambda: TextureCNN(widths), seed, name), generator(seed, f"{name} textures")

    def drawn() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            kinds = torch.randint(TEXTURES, (settings.batch,), generator=gen)
            yield textures(kinds, settings.texture_side, gen), kinds

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return F_.cross_entropy(net(batch[0]), batch[1])

    train(net, loss, drawn(), settings.lr_network, steps=settings.train_steps, schedule="onecycle")
    net.requires_grad_(requires_grad=False)
    images, _ = next(drawn())
    net.size = torch.stack([maps.mean() for maps in net.features(images)]).clamp(min=1e-6)
    return net


def gram(F: Tensor) -> Tensor:
    """Inner products between filters, summed over positions: (..., N, M) to (..., N, N) (Equation 3)."""
    return F @ F.transpose(-1, -2)


def content_loss(F: Tensor, P: Tensor) -> Tensor:
    """Half the squared distance of two feature maps (Equation 1)."""
    return 0.5 * (F - P).square().sum()


def style_loss(F: Tensor, A: Tensor) -> Tensor:
    """One layer's squared distance of Gram matrices over 4 N^2 M^2 (Equation 4)."""
    N, M = F.shape[-2:]
    return (gram(F) - A).square().sum() / (4 * N**2 * M**2)


def transfer(net: TextureCNN, content: Tensor, style: Tensor, ratio: float, steps: int, lr: float) -> Tensor:
    """Descend on alpha * content + beta * style over pixels, from the content image, beta = ratio * alpha (Equation 7)."""
    P = net.features(content)[-1]
    A = [gram(maps) for maps in net.features(style)]
    w = 1 / len(A)
    x = content.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        maps = net.features(x)
        per_layer = [w * style_loss(F, target) for F, target in zip(maps, A, strict=True)]
        loss = content_loss(maps[-1], P) / ratio + torch.stack(per_layer).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    return x.detach()


def relative(a: Tensor, b: Tensor) -> float:
    """The Frobenius norm of a - b over that of b."""
    return float((a - b).norm() / b.norm())


def distances(judge: TextureCNN, x: Tensor, content: Tensor, style: Tensor) -> tuple[float, float]:
    """Relative distances: last features to the content's, and Gram matrices to the style's, mean over layers."""
    maps, wanted = judge.features(x), judge.features(style)
    grams = [relative(gram(F), gram(S)) for F, S in zip(maps, wanted, strict=True)]
    return relative(maps[-1], judge.features(content)[-1]), sum(grams) / len(grams)


def place_effects(net: TextureCNN, image: Tensor, gen: torch.Generator) -> dict[str, float]:
    """What permuting feature positions does to Gram matrix and features, and permuting pixels to the Gram matrix."""
    F = net.features(image)[-1].double()
    permuted = F[..., torch.randperm(F.shape[-1], generator=gen)]
    pixels = image.flatten(2)
    scrambled = pixels[..., torch.randperm(pixels.shape[-1], generator=gen)].view_as(image)
    return {
        "gram_error": relative(gram(permuted), gram(F)),
        "content_change": relative(permuted, F),
        "pixel_perm_change": relative(gram(net.features(scrambled)[-1].double()), gram(F)),
    }


@dataclass(frozen=True)
class Made:
    """A result, the blend it is set against, and what the judge says: distances of content and style, and the blend's."""

    image: Tensor
    blend: Tensor
    of_content: float
    of_style: float
    of_blend: float


def crops(settings: Settings, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """A square from a random place of each sample photograph, the temple and the flower: (1, 3, side, side) each."""
    parts = []
    for photo in load_sample_images().images:
        small = F_.avg_pool2d(torch.tensor(photo).permute(2, 0, 1)[None].float() / 255, settings.shrink)
        top, left = (int(torch.randint(0, n - settings.side + 1, (), generator=gen)) for n in small.shape[-2:])
        parts.append(small[..., top : top + settings.side, left : left + settings.side])
    return parts[0], parts[1]


def picture(image: Tensor, side: int) -> list[Any]:
    """An image (1, 3, H, W) as side x side x 3 bytes."""
    small = F_.interpolate(image, size=(side, side), mode="area")[0].permute(1, 2, 0)
    return (small * 255).round().int().tolist()


def compare(nets: tuple[TextureCNN, TextureCNN], content: Tensor, style: Tensor, settings: Settings) -> list[Made]:
    """The result at every ratio, and the pixel blend that the judge finds equally far from the content."""
    net, judge = nets
    mixes = torch.linspace(1, 0, settings.blends).tolist()
    family = sorted((*distances(judge, a * content + (1 - a) * style, content, style), a) for a in mixes)
    far, unlike, share = (np.array(values) for values in zip(*family, strict=True))
    made = []
    for ratio in settings.ratios:
        x = transfer(net, content, style, ratio, settings.pixel_steps, settings.lr_pixels)
        of_content, of_style = distances(judge, x, content, style)
        a = float(np.interp(of_content, far, share))  # beyond the ends of the family: its last member
        blend = a * content + (1 - a) * style
        made.append(Made(x, blend, of_content, of_style, float(np.interp(of_content, far, unlike))))
    return made


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Give each crop the style of the other at every ratio, and judge the results by the other network."""
    temple, flower = crops(settings, generator(seed, "crops"))
    net = texture_network(settings.widths, seed, "network", settings)
    judge = texture_network(settings.judge_widths, seed, "judge", settings)
    rows: list[dict[str, Any]] = []
    both, rho = [], []
    for name, content, style in (("temple", temple, flower), ("flower", flower, temple)):
        made = compare((net, judge), content, style, settings)
        both.append(made)
        falling, rising = [-m.of_style for m in made], [m.of_content for m in made]
        rho += [float(spearmanr(settings.ratios, values).statistic) for values in (rising, falling)]
        pictures = [(name, 0.0, content), *((name, settings.ratios[i], made[i].image) for i in settings.shown)]
        pictures.append((f"{name}_blend", settings.ratios[settings.judged], made[settings.judged].blend))
        for line, ratio, image in pictures:
            shown = picture(image, settings.shown_side)
            rows.append({"panel": "pictures", "line": line, "ratio": ratio, "image": shown})
    for i, ratio in enumerate(settings.ratios):
        for line in ("of_content", "of_style", "of_blend"):
            value = sum(getattr(made[i], line) for made in both) / len(both)
            rows.append({"panel": "distances", "line": line, "ratio": ratio, "value": value})

    judged = [made[settings.judged] for made in both]
    ratios = [min(m.of_style / max(m.of_blend, 1e-9), settings.largest_ratio) for m in judged]
    metrics = {
        "style_ratio": sum(ratios) / len(ratios),
        **place_effects(net, temple, generator(seed, "permutations")),
        "tradeoff_rho": round(min(rho), 9),  # one swap of neighbours is 0.9 exactly
    }
    return Result(metrics, rows)
