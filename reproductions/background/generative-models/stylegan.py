"""StyleGAN: a generator steered layer by layer by a learned transform of its latent (arXiv:1812.04948).

Symbols: z latent (B, 32), normal · f mapping network, w = f(z) (B, 32) · y style of a layer: a scale y_s and a shift
y_b for each of its C feature maps (B, C) each · x feature maps (B, C, H, H) with H = 2, 4, 8 in the three layers ·
noise one number per pixel and layer (B, 1, H, H) · G synthesis network, from one w per layer and noise to images
(B, 64) in [-1, 1] · D discriminator, gives logits (B,).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from reproductions.lab import Result
from reproductions.lab.adversarial import logistic_d_loss, non_saturating_g_loss, r1_penalty
from reproductions.lab.digits import CLASSES, SIDE, batches, fixed_split, load
from reproductions.lab.judge import digit_judge, judge_fid
from reproductions.lab.seeding import generator, init_model

Z, SIDES, MAPS = 32, (2, 4, 8), (32, 32, 16)
LAYERS = len(SIDES)
NOISE_START = 0.5  # maps have a spread of about 1 before it; from 0, as in the paper, 900 steps leave it at almost 0
RARE = 10
Noise = list[Tensor]


@dataclass(frozen=True)
class Settings:
    """Sizes and rates."""

    steps: int = 900
    batch: int = 32
    lr: float = 2e-3
    gamma: float = 1.0  # of 0.2 and 1, by the quality ratio on pilot seeds 0 and 1
    lazy: int = 8
    mixing: float = 0.5
    decay: float = 0.99
    images: int = 4000
    kept: float = 0.6
    swaps: int = 2000
    noises: int = 8
    walk: float = 0.01
    lines: int = 4


SHORT = Settings(steps=9, images=400, swaps=50, noises=2, lines=2)


def initialised(network: nn.Module) -> nn.Module:
    """He's initialisation for every matrix and kernel, zero for biases."""
    for part in network.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, a=0.2)
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]
    return network


def normalised(z: Tensor) -> Tensor:
    """Latents z (B, 32) with mean square 1: what the mapping network sees."""
    return z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class Mapping(nn.Sequential):
    """f: four layers from z to w (Section 2)."""

    def __init__(self) -> None:
        super().__init__(*(part for _ in range(4) for part in (nn.Linear(Z, Z), nn.LeakyReLU(0.2))))
        initialised(self)

    def forward(self, z: Tensor) -> Tensor:
        """Latents z (B, 32) to w (B, 32)."""
        w = normalised(z)
        for layer in self:
            w = layer(w)
        return w


def adain(x: Tensor, y_s: Tensor, y_b: Tensor) -> Tensor:
    """Each map to mean y_b and standard deviation y_s over its own positions (Equation 1)."""
    centred = x - x.mean((2, 3), keepdim=True)
    unit = centred * (centred.square().mean((2, 3), keepdim=True) + 1e-8).rsqrt()
    return y_s[:, :, None, None] * unit + y_b[:, :, None, None]


class StyledConv(nn.Module):
    """Convolution, noise, non-linearity, and the style that w asks for (Figure 1)."""

    def __init__(self, before: int, maps: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, maps, 3, padding=1)
        self.noise_scale = nn.Parameter(torch.full((maps, 1, 1), NOISE_START))
        self.affine = nn.Linear(Z, 2 * maps)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        """Maps x (B, before, H, H), w (B, 32), noise (B, 1, H, H) to (B, maps, H, H)."""
        x = leaky_relu(self.conv(x) + self.noise_scale * noise, 0.2)
        y_s, y_b = self.affine(w).chunk(2, dim=1)
        return adain(x, 1 + y_s, y_b)


class Generator(nn.Module):
    """Mapping f and synthesis G."""

    def __init__(self) -> None:
        super().__init__()
        self.f = Mapping()
        self.constant = nn.Parameter(torch.randn(1, 16, SIDES[0], SIDES[0]))
        self.layers = nn.ModuleList(StyledConv(*pair) for pair in zip((16, *MAPS), MAPS, strict=False))
        self.to_grey = nn.Conv2d(MAPS[-1], 1, 1)
        initialised(self)

    def synthesis(self, ws: Sequence[Tensor], noise: Noise) -> Tensor:
        """One w (B, 32) for each layer and its noise, to images (B, 64)."""
        x = self.constant.expand(len(ws[0]), -1, -1, -1)
        for layer, side, w, pixels in zip(self.layers, SIDES, ws, noise, strict=True):
            if side != x.shape[-1]:
                x = interpolate(x, scale_factor=2, mode="nearest")
            x = layer(x, w, pixels)
        image: Tensor = self.to_grey(x).tanh()
        return image.flatten(1)

    def forward(self, w: Tensor, noise: Noise) -> Tensor:
        """The same w in all layers."""
        return self.synthesis([w] * LAYERS, noise)


class Discriminator(nn.Module):
    """Three convolutions, and the spread of the batch as a last feature map (arXiv:1710.10196, section 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.third, self.out = nn.Conv2d(33, 32, 3, stride=2, padding=1), nn.Linear(32 * 4, 1)
        initialised(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 64) to logits (B,)."""
        x = leaky_relu(self.first(images.view(-1, 1, SIDE, SIDE)), 0.2)
        x = leaky_relu(self.second(x), 0.2)  # (B, 32, 4, 4)
        spread = (x.var(0, correction=0) + 1e-8).sqrt().mean()
        x = leaky_relu(self.third(torch.cat([x, spread.expand(len(x), 1, 4, 4)], 1)), 0.2)  # (B, 32, 2, 2)
        logits: Tensor = self.out(x.flatten(1))[:, 0]
        return logits


def draw_noise(n: int, gen: torch.Generator) -> Noise:
    """Noise per pixel for each layer."""
    return [torch.randn(n, 1, side, side, generator=gen) for side in SIDES]


def mixed(w_1: Tensor, w_2: Tensor, share: float, gen: torch.Generator) -> list[Tensor]:
    """Mixing regularisation: in a share of the images the layers from a random one on take w_2 (Section 3.1)."""
    n = len(w_1)
    first = torch.randint(1, LAYERS, (n, 1), generator=gen)  # the first layer with the other w
    first[torch.rand(n, 1, generator=gen) >= share] = LAYERS
    return [torch.where(first <= layer, w_2, w_1) for layer in range(LAYERS)]


def fit(start: Generator, digits: Tensor, seed: int, s: Settings) -> Generator:
    """Both players in turn, one step each; returns the generator with the running mean of its weights."""
    G, D, gen = copy.deepcopy(start), init_model(Discriminator, seed, "discriminator"), generator(seed, "training")
    mean = AveragedModel(G, multi_avg_fn=get_ema_multi_avg_fn(s.decay))  # type: ignore[no-untyped-call]
    g_optimizer, d_optimizer = (torch.optim.Adam(net.parameters(), s.lr, (0.0, 0.99), fused=True) for net in (G, D))
    for step, index in enumerate(batches(len(digits), s.batch, s.steps, generator(seed, "batches"))):
        w_1, w_2 = G.f(torch.randn(2 * s.batch, Z, generator=gen)).chunk(2)
        fake = G.synthesis(mixed(w_1, w_2, s.mixing, gen), draw_noise(s.batch, gen))
        d_loss = logistic_d_loss(D(digits[index]), D(fake.detach()))
        if step % s.lazy == 0:  # the penalty now and then, and stronger (arXiv:1912.04958, section 3.1)
            d_loss = d_loss + s.lazy * s.gamma / 2 * r1_penalty(D, digits[index])
        d_optimizer.zero_grad()
        d_loss.backward()  # type: ignore[no-untyped-call]
        d_optimizer.step()
        g_optimizer.zero_grad()
        non_saturating_g_loss(D(fake)).backward()  # type: ignore[no-untyped-call]
        g_optimizer.step()
        mean.update_parameters(G)
    trained: Generator = mean.module.requires_grad_(requires_grad=False)  # type: ignore[assignment]
    return trained


def linear_accuracy(points: Tensor, classes: Tensor) -> float:
    """Held-out accuracy, mean over classes, of a linear classifier fitted on the first half (n, d), (n,).

    A class with fewer than 10 points in either half is left out.
    """
    half = len(points) // 2
    counts = torch.stack([part.bincount(minlength=CLASSES) for part in (classes[:half], classes[half:])]).amin(0)
    readable = (counts >= RARE).nonzero()[:, 0]
    if len(readable) < 2:
        return 0.0
    inside = torch.isin(classes, readable)
    fitted, held_out = inside.clone(), inside.clone()
    fitted[half:], held_out[:half] = False, False
    reader = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=500))
    reader.fit(points[fitted].double().numpy(), classes[fitted].numpy())
    right = torch.from_numpy(reader.predict(points[held_out].double().numpy())) == classes[held_out]
    return float(torch.stack([right[classes[held_out] == label].float().mean() for label in readable]).mean())


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """The point at t (B, 1) on the great circle from a to b (B, 32), of length 1."""
    a, b = (end / end.norm(dim=1, keepdim=True) for end in (a, b))
    angle = (a * b).sum(1, keepdim=True).clamp(-1 + 1e-6, 1 - 1e-6).acos()
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


def path_lengths(G: Generator, z: Tensor, step: float, gen: torch.Generator) -> dict[str, float]:
    """Mean squared change of the judge's features per squared step, along arcs in z and lines in w (Section 4.1)."""
    (a, b), noise = z.chunk(2), draw_noise(len(z) // 2, gen)
    t = torch.rand(len(a), 1, generator=gen)
    ways = {
        "z": [G.f(slerp(a, b, at)) for at in (t, t + step)],
        "w": [torch.lerp(G.f(a), G.f(b), at) for at in (t, t + step)],
    }
    features = {space: [digit_judge().features(G(w, noise)) for w in ws] for space, ws in ways.items()}
    return {space: float((one - two).square().sum(1).mean()) / step**2 for space, (one, two) in features.items()}


def picture(image: Tensor) -> list[list[int]]:
    """An image (64,) as 8 x 8 grey levels."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().int().view(SIDE, SIDE).tolist()


def measure(start: Generator, G: Generator, digits: Tensor, seed: int, s: Settings) -> Result:
    """Separability, effects of each scale, effects of noise."""
    gen, judge = generator(seed, "measuring"), digit_judge()
    z = torch.randn(s.images, Z, generator=gen)
    noise = draw_noise(s.images, gen)
    w = G.f(z)
    images, before = G(w, noise), start(start.f(z), noise)
    quality = judge_fid(images[:1000], digits) / judge_fid(before[:1000], digits)

    sureness, named = judge.probabilities(images).max(1)
    kept = (sureness >= sureness.quantile(1 - s.kept)).nonzero()[:, 0]
    spaces = {"z": normalised(z), "untrained": start.f(z), "w": w}
    acc = {space: linear_accuracy(points[kept], named[kept]) for space, points in spaces.items()}

    w_a, w_b = w[: s.swaps], w[s.swaps : 2 * s.swaps]
    if len(w_b) < s.swaps:
        raise ValueError(f"{s.images} images are too few for {s.swaps} swaps; draw at least {2 * s.swaps}")
    same, fresh = [layer[: s.swaps] for layer in noise], draw_noise(s.swaps, gen)
    variants = {
        "coarse": G.synthesis([w_b, w_b, w_a], same),
        "fine": G.synthesis([w_a, w_a, w_b], same),
        "noise": G(w_a, fresh),
        "all": G(w_b, same),
    }
    changed = {
        name: (judge(variant).argmax(1) != named[: s.swaps]).float().mean().item() for name, variant in variants.items()
    }
    repeated = w_a.repeat_interleave(s.noises, 0)
    again = G(repeated, draw_noise(len(repeated), gen)).view(s.swaps, s.noises, -1)
    of_noise = again.var(1).mean(0).sum() / again.flatten(0, 1).var(0).sum()
    metrics = {
        "acc_w": acc["w"],
        "acc_control": max(acc["z"], acc["untrained"]),
        "quality_ratio": quality,
        "coarse_effect": changed["coarse"] - changed["fine"],
        "noise_ratio": of_noise.item(),
        "identity_ratio": changed["noise"] / changed["all"],
    }
    rows: list[dict[str, Any]] = [{"panel": "accuracy", "space": space, "accuracy": acc[space]} for space in acc]
    rows += [{"panel": "changed", "swap": name, "share": share} for name, share in changed.items()]
    paths = path_lengths(G, z, s.walk, gen)
    rows += [{"panel": "path", "space": space, "length": length} for space, length in paths.items()]
    sources = [int((named == digit).nonzero()[0]) for digit in range(CLASSES) if (named == digit).any()]
    coarse, fine, still = sources[: s.lines], sources[s.lines :], [layer[:1] for layer in noise]
    pairs = {("fine", k): (j, j) for k, j in enumerate(fine, start=1)}
    for n, i in enumerate(coarse, start=1):
        pairs |= {(f"coarse_{n}", k): (i, j) for k, j in enumerate([i, *fine])}
    for (line, column), (i, j) in pairs.items():
        image = picture(G.synthesis([w[[i]], w[[i]], w[[j]]], still)[0])
        rows.append({"panel": "mixing", "line": line, "column": column, "image": image})
    return Result(metrics, rows)


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train one generator and take it apart."""
    pixels, _ = load((-1.0, 1.0))
    digits = pixels[fixed_split()[0]].flatten(1)  # (1000, 64)
    start = init_model(Generator, seed, "generator")
    G = fit(start, digits, seed, settings)
    return measure(start.requires_grad_(requires_grad=False), G, digits, seed, settings)
