"""DALL-E 2: a prior draws CLIP's embedding of an image, a decoder draws the image (unCLIP, arXiv:2204.06125).

Symbols: y caption, here a class word · x image (B, 64) · z CLIP's embedding of the image, a unit vector (B, d) ·
z_t its noisy version at step t = 1..T · abar share of the clean signal's variance that is left at each step (T,) ·
w guidance scale; 0 is the plain conditional model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from reproductions.lab import Result
from reproductions.lab.contrastive import TinyCLIP, fit_clip
from reproductions.lab.denoiser import NO_CLASS, MLPDenoiser, SourceDenoiser
from reproductions.lab.diffusion import alpha_bar, ancestral_sample, cosine_betas
from reproductions.lab.digits import CLASSES, SIDE, batches, fixed_split, load
from reproductions.lab.judge import digit_judge, judge_fid, precision_recall
from reproductions.lab.noise_prediction import fit_denoiser
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train

STYLE = (("left", "upright", "right"), ("thin", "normal", "thick"), ("narrow", "wide"))
PADDING = CLASSES + sum(len(words) for words in STYLE)  # after the class words 0 to 9 and those of STYLE


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate has the lowest loss on the 397 digits that train the judge, on pilot seeds 0 and 1."""

    d: int = 24
    T: int = 100
    clip_steps: int = 300
    steps: int = 500  # of the prior and of the decoder each; the direct model gets the sum
    batch: int = 128
    dropped_words: float = 0.5
    hidden_conditions: float = 0.15
    lr_clip: float = 8e-3  # of 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2
    lr_prior: float = 8e-3  # of 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2
    lr_decoder: float = 8e-3  # of the same five
    direct_width: int = 368  # as many parameters as prior and decoder; the usual 256 had a higher loss
    lr_direct: float = 4e-3  # of the same five, for both widths
    sampling_steps: int = 50
    clamp: float = 3.0  # of the predicted image on the way; 1 would pull the digits to grey
    samples: int = 800
    guidance: tuple[float, ...] = (0.0, 1.0, 2.0)
    judged: float = 2.0
    shown_digit: int = 2
    shown: int = 10


SHORT = Settings(T=10, clip_steps=2, steps=2, sampling_steps=2, samples=50, shown=3)


def style(images: Tensor) -> Tensor:
    """Slant to the right, ink and width of images (n, 64) with values in [-1, 1], from their moments: (n, 3)."""
    ink = (images.view(-1, SIDE, SIDE) + 1) / 2
    share = ink / ink.sum((1, 2), keepdim=True)
    up, across = -torch.arange(SIDE).float()[:, None], torch.arange(SIDE).float()[None, :]

    def mean(values: Tensor) -> Tensor:
        return (share * values).sum((1, 2), keepdim=True)  # (n, 1, 1)

    u, a = up - mean(up), across - mean(across)
    parts = (mean(u * a) / mean(u * u), ink.sum((1, 2), keepdim=True), mean(a * a).sqrt())
    return torch.cat(parts, 1)[..., 0]


def captions(images: Tensor, classes: Tensor) -> Tensor:
    """Class word and words of STYLE; each of these names an equal share of the images: (n, 4) tokens."""
    tokens, first = [classes], CLASSES
    for values, words in zip(style(images).T.contiguous(), STYLE, strict=True):
        bounds = values.quantile(torch.arange(1, len(words)) / len(words))
        tokens.append(first + torch.bucketize(values, bounds))
        first += len(words)
    return torch.stack(tokens, 1)


def leave_out(tokens: Tensor, share: float, gen: torch.Generator) -> Tensor:
    """Captions (n, 4) with about this share of the words for style missing; the class word stays."""
    missing = torch.rand(tokens.shape, generator=gen) < share
    missing[:, 0] = False
    return tokens.masked_fill(missing, PADDING)


class Decoder(nn.Module):
    """p(x | z), by predicted noise; a learned vector stands for z where it is hidden (Section 2.1).

    `lab` hides a condition by filling its row with NO_CLASS, which no unit vector contains.
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.hidden = nn.Parameter(torch.zeros(d))
        self.body = SourceDenoiser(source=d)

    def forward(self, x: Tensor, time: Tensor, z: Tensor) -> Tensor:
        """Noise in x (B, 64) at times (B,), given embeddings z (B, d)."""
        given = torch.where(z[:, :1] == NO_CLASS, self.hidden, math.sqrt(z.shape[1]) * z)  # entries of size about 1
        predicted: Tensor = self.body(x, time, given)
        return predicted


def prior_loss(prior: MLPDenoiser, z: Tensor, y: Tensor, abar: Tensor, gen: torch.Generator) -> Tensor:
    """|f(z_t, t, y) - z|^2 at a random step: the prior predicts the embedding, not the noise (Section 2.2)."""
    clean = math.sqrt(z.shape[1]) * z  # (B, d), entries of size about 1
    t = torch.randint(1, len(abar) + 1, (len(z),), generator=gen)  # (B,)
    left = abar[t - 1, None]
    z_t = left.sqrt() * clean + (1 - left).sqrt() * torch.randn(clean.shape, generator=gen)
    loss: Tensor = (prior(z_t, t / len(abar), y) - clean).square().mean()
    return loss


def draw_embeddings(prior: MLPDenoiser, y: Tensor, d: int, betas: Tensor, steps: int, gen: torch.Generator) -> Tensor:
    """p(z | y): one embedding (n, d) for each class word y (n,), without guidance, brought to unit length."""
    abar = alpha_bar(betas)

    def noise(z_t: Tensor, time: Tensor, words: Tensor) -> Tensor:
        """What is left of z_t when the predicted embedding is taken away."""
        left = abar[(time * len(abar)).round().long() - 1, None]
        eps: Tensor = (z_t - left.sqrt() * prior(z_t, time, words)) / (1 - left).sqrt()
        return eps

    return normalize(ancestral_sample(noise, betas, y, (len(y), d), gen, steps=steps, clamp=math.inf), dim=-1)


def fit(seed: int, x: Tensor, y: Tensor, s: Settings) -> tuple[TinyCLIP, MLPDenoiser, Decoder, MLPDenoiser]:
    """CLIP first; then prior and decoder on its embeddings, and the direct model, on the same images."""
    betas, words, wording = cosine_betas(s.T), captions(x, y), generator(seed, "wording")
    clip = init_model(lambda: TinyCLIP(SIDE * SIDE, PADDING, s.d), seed)

    def told(index: Tensor) -> Tensor:
        return leave_out(words[index], s.dropped_words, wording)

    fit_clip(clip, x, told, seed, steps=s.clip_steps, batch=s.batch, lr=s.lr_clip)
    clip.requires_grad_(requires_grad=False)
    z = clip.embed_images(x)  # (1000, d)

    prior, abar, noise = init_model(lambda: MLPDenoiser(s.d), seed), alpha_bar(betas), generator(seed, "prior noise")
    order = batches(len(z), s.batch, s.steps, generator(seed, "prior batches"))
    loss = partial(prior_loss, prior, abar=abar, gen=noise)
    train(prior, lambda i: loss(z[i], y[i]), order, s.lr_prior, steps=s.steps, schedule="onecycle")

    decoder, hidden = init_model(lambda: Decoder(s.d), seed), s.hidden_conditions
    direct = init_model(lambda: MLPDenoiser(width=s.direct_width), seed)
    fit_denoiser(decoder, x, z, betas, seed, steps=s.steps, batch=s.batch, lr=s.lr_decoder, dropped=hidden)
    fit_denoiser(direct, x, y, betas, seed, steps=2 * s.steps, batch=s.batch, lr=s.lr_direct, dropped=hidden)
    return clip, prior, decoder, direct


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train all parts, let both ways draw the same class words, and feed one decoder four kinds of embedding."""
    s = settings
    pixels, labels = load((-1.0, 1.0))
    train_set, judge_set, test_set = fixed_split()
    digits, classes = pixels[train_set].flatten(1), labels[train_set]  # (1000, 64), (1000,)
    held_out = pixels[torch.cat([judge_set, test_set])].flatten(1)  # (797, 64), seen by no generator
    clip, prior, decoder, direct = fit(seed, digits, classes, s)
    betas, z = cosine_betas(s.T), clip.embed_images(digits)
    y = torch.arange(s.samples) % CLASSES  # equally many of each class
    n = min(s.samples, len(held_out))
    real = pixels[test_set[torch.arange(s.samples) % len(test_set)]]
    class_means = torch.stack([z[classes == c].mean(0) for c in range(CLASSES)])
    inputs = {
        "prior": draw_embeddings(prior, y, s.d, betas, s.sampling_steps, generator(seed, "prior")),
        "text": clip.embed_texts(y[:, None]),
        "mean": normalize(class_means, dim=-1)[y],
        "true": clip.embed_images(real),
    }

    def draw(model: nn.Module, condition: Tensor, w: float = 0.0) -> dict[str, Any]:
        """Images from the same noise for all arms, clipped as a picture is, and what the judges say of them."""
        gen, shape = generator(seed, "sampling"), (s.samples, SIDE * SIDE)
        images = ancestral_sample(
            model, betas, condition, shape, gen, steps=s.sampling_steps, guidance=w, clamp=s.clamp
        )
        images = images.clamp(-1, 1)
        _, recall = precision_recall(images[:n], held_out[:n])
        return {"images": images, "recall": recall, "fid": judge_fid(images, digits)}

    arms = {
        (arm, w): draw(model, condition, w)
        for arm, model, condition in (("direct", direct, y), ("unclip", decoder, inputs["prior"]))
        for w in s.guidance
    }
    fed = {name: draw(decoder, given) for name, given in inputs.items() if name != "prior"}
    fed["prior"] = arms["unclip", 0.0]
    ours, rival = arms["unclip", s.judged], arms["direct", s.judged]
    judge = digit_judge()
    metrics = {
        "recall_gain": ours["recall"] - rival["recall"],
        "acc_gap": judge.accuracy(ours["images"], y) - judge.accuracy(rival["images"], y),
        "fid_excess": ours["fid"] - rival["fid"],
        "prior_fid_gain": fed["text"]["fid"] - fed["prior"]["fid"],
        "prior_recall_gain": fed["prior"]["recall"] - fed["text"]["recall"],
    }

    rows: list[dict[str, Any]] = []
    for (arm, w), drawn in arms.items():
        rows += [{"panel": score, "arm": arm, "w": w, score: drawn[score]} for score in ("recall", "fid")]
    rows += [{"panel": "inputs", "given": k, "fid": v["fid"], "recall": v["recall"]} for k, v in fed.items()]
    lines = {f"{arm}_{w:g}": drawn["images"] for (arm, w), drawn in arms.items() if w in (0.0, s.judged)}
    for line, images in (lines | {"text": fed["text"]["images"]}).items():
        chosen = images[y == s.shown_digit][: s.shown]
        rows += [{"panel": "pictures", "line": line, "position": i, "image": picture(x)} for i, x in enumerate(chosen)]
    return Result(metrics, rows)


def picture(image: Tensor) -> list[list[int]]:
    """An image (64,) as 8 x 8 grey levels."""
    return ((image + 1) * 127.5).round().int().view(SIDE, SIDE).tolist()
