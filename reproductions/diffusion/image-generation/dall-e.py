"""DALL-E: text and image codes as one stream of tokens (arXiv:2102.12092).

Symbols: x image (n, 3, 8, 8), cut into 16 patches of 2 x 2 x 3 numbers · K = 64 codes, l encoder's logits (n, 16, K),
tau temperature of the Gumbel-softmax · t caption tokens (n, 5), c image codes (n, 16) · N candidates per caption
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from reproductions.lab import Result
from reproductions.lab.contrastive import TinyCLIP, fit_clip
from reproductions.lab.digits import batches
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT

COLOURS = torch.tensor(  # red, green, blue, yellow, purple, white
    [[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.15, 0.25, 0.95], [0.9, 0.85, 0.1], [0.65, 0.15, 0.8], [0.95, 0.95, 0.95]]
)
# on the grid of patches, so that 16 codes can hold a picture; each shape is made of patches that others have too
SPRITES = torch.tensor(  # square, disc, ring, dome: (4, 4, 4)
    [
        [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
        [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]],
        [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]],
        [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
    ]
).float()
SCENES = torch.cartesian_prod(torch.arange(6), torch.arange(4), torch.arange(4))  # (96, 3): colour, shape, place
HELD_OUT = torch.tensor([[0, 1], [1, 2], [2, 0], [3, 3]])  # red disc, green ring, blue square, yellow dome
UNSEEN = (SCENES[:, None, :2] == HELD_OUT).all(-1).any(1)  # (96,)
WORDS, CAPTION, CODES = 15, 5, 16  # words of the captions: "a", 6 colours, 4 shapes, top, bottom, left, right


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate is chosen on pilot seeds 0 and 1 by a loss on unseen images of the seen pairs."""

    train: int = 4000
    K: int = 64
    dvae_steps: int = 300
    lr_dvae: float = 3e-2  # of 3e-3, 1e-2, 3e-2, 1e-1
    layers: int = 2
    d: int = 64
    heads: int = 4
    batch: int = 64
    steps: int = 600
    lr: float = 1.6e-2  # of 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, after 700 steps
    rerank_train: int = 1500
    rerank_steps: int = 300
    lr_clip: float = 1.6e-2  # of 2e-3, 4e-3, 8e-3, 1.6e-2
    samples: int = 40  # of each unseen pair
    candidates: int = 16
    repeats: int = 2  # prompts of each scene for reranking


SHORT = Settings(train=40, K=8, dvae_steps=2, d=16, batch=8, steps=2, rerank_train=40, rerank_steps=2, samples=4, candidates=2, repeats=1)  # fmt: skip


def draw(scenes: Tensor, gen: torch.Generator, noise: float = 0.05) -> Tensor:
    """Images (n, 3, 8, 8) in 0..1 of scenes (n, 3): a 4 x 4 sprite in one quadrant, with varying brightness."""
    n = len(scenes)
    grid = torch.zeros(n, 2, 4, 2, 4)  # quadrant's row, row in it, quadrant's column, column in it
    grid[torch.arange(n), scenes[:, 2] // 2, :, scenes[:, 2] % 2] = SPRITES[scenes[:, 1]]
    brightness = 0.7 + 0.3 * torch.rand(n, 1, 1, 1, generator=gen)
    image = brightness * grid.view(n, 1, 8, 8) * COLOURS[scenes[:, 0], :, None, None]
    return (image + noise * torch.randn(image.shape, generator=gen)).clamp(0, 1)


def caption(scenes: Tensor) -> Tensor:
    """Tokens (n, 5) of "a (colour) (shape) (top or bottom) (left or right)"."""
    colour, shape, place = scenes.T
    return torch.stack([torch.zeros_like(colour), 1 + colour, 7 + shape, 11 + place // 2, 13 + place % 2], dim=1)


def read(images: Tensor) -> Tensor:
    """The scene (n, 3) whose picture, at its best brightness, is nearest to each image; nothing is learned."""
    templates = draw(SCENES, generator(0), noise=0.0).flatten(1)
    templates = templates / templates.norm(dim=1, keepdim=True)  # (96, 192)
    return SCENES[(images.flatten(1) @ templates.T).argmax(1)]


def patches(images: Tensor) -> Tensor:
    """Images (n, 3, 8, 8) to patches (n, 16, 12) in reading order."""
    return images.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def assemble(parts: Tensor) -> Tensor:
    """The way back: patches (n, 16, 12) to images (n, 3, 8, 8)."""
    return parts.view(-1, 4, 4, 3, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, 8, 8)


def gumbel_softmax(logits: Tensor, tau: float, gen: torch.Generator) -> Tensor:
    """A soft choice of one code: softmax((l + g) / tau) with Gumbel noise g = -log(-log u) (Section 2.1)."""
    u = torch.rand(logits.shape, generator=gen, dtype=logits.dtype).clamp(1e-9, 1 - 1e-7)
    return ((logits - (-u.log()).log()) / tau).softmax(-1)


class DVAE(nn.Module):
    """A linear encoder of patches to logits over K codes, and a linear decoder of codes to patches.

    From random weights most codes were never used, so each code begins at a patch of the data (as k-means++ does):
    its logits are minus the squared distance times `sharpness`, but for a part common to all codes.
    """

    def __init__(self, x: Tensor, K: int, gen: torch.Generator, sharpness: float = 30.0) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(12, K), nn.Linear(K, 12)
        e = torch.zeros(1, 12)  # the empty patch
        while len(e) < K:
            far = torch.cdist(x, e).min(1).values.square()
            e = torch.cat([e, x[torch.multinomial(far, 1, generator=gen)]])
        for parameter, value in (
            (self.encoder.weight, 2 * sharpness * e),
            (self.encoder.bias, -sharpness * e.square().sum(1)),
            (self.decoder.weight, e.T),
            (self.decoder.bias, torch.zeros(12)),
        ):
            parameter.data.copy_(value)

    def codes(self, images: Tensor) -> Tensor:
        """The most likely code of each patch (n, 16)."""
        return self.encoder(patches(images)).argmax(-1)

    def redraw(self, codes: Tensor) -> Tensor:
        """Images (n, 3, 8, 8) of codes (n, 16)."""
        one_hot = nn.functional.one_hot(codes, self.encoder.out_features).float()
        return assemble(self.decoder(one_hot)).clamp(0, 1)


def fit_dvae(images: Tensor, s: Settings, seed: int) -> DVAE:
    """Stage 1: redraw images from soft choices that get harder, tau from 1 to 0.1 (Section 2.1)."""
    gen = generator(seed, "gumbel")
    dvae = DVAE(patches(images[:500]).flatten(0, 1), s.K, gen)
    steps = iter(range(s.dvae_steps))

    def loss(index: Tensor) -> Tensor:
        tau = 0.1 ** (next(steps) / s.dvae_steps)
        x = patches(images[index])
        return mse_loss(dvae.decoder(gumbel_softmax(dvae.encoder(x), tau, gen)), x)

    order = batches(len(images), s.batch, s.dvae_steps, generator(seed, "dvae batches"))
    train(dvae, loss, order, s.lr_dvae, steps=s.dvae_steps, schedule="cosine")
    return dvae.requires_grad_(requires_grad=False)


def stream_loss(gpt: TinyGPT, stream: Tensor) -> Tensor:
    """Next-token loss on captions and codes (n, 21): 1/8 of the text's mean, 7/8 of the image's (Section 2.2)."""
    losses = cross_entropy(gpt(stream[:, :-1]).transpose(1, 2), stream[:, 1:], reduction="none")  # (n, 20)
    return losses[:, : CAPTION - 1].mean() / 8 + losses[:, CAPTION - 1 :].mean() * 7 / 8


def fit_gpt(stream: Tensor, s: Settings, seed: int) -> TinyGPT:
    """Stage 2: one Transformer for the joint stream (Section 2.2)."""
    gpt = init_model(lambda: TinyGPT(WORDS + s.K, s.d, s.layers, s.heads, CAPTION + CODES), seed)
    order = batches(len(stream), s.batch, s.steps, generator(seed, "batches"))
    train(gpt, lambda index: stream_loss(gpt, stream[index]), order, s.lr, steps=s.steps, schedule="onecycle")
    return gpt


@torch.no_grad()
def sample(gpt: TinyGPT, t: Tensor, gen: torch.Generator) -> Tensor:
    """Codes (n, 16) drawn one by one at temperature 1 after captions (n, 5)."""
    stream = t
    for _ in range(CODES):
        chances = gpt(stream)[:, -1, WORDS:].softmax(-1)  # a word cannot stand in an image
        stream = torch.cat([stream, WORDS + torch.multinomial(chances, 1, generator=gen)], dim=1)
    return stream[:, CAPTION:] - WORDS


def right(images: Tensor, scenes: Tensor) -> Tensor:
    """Whether colour and shape of each image are those of its scene: (n,) of 0 and 1."""
    return (read(images)[:, :2] == scenes[:, :2]).all(1).float()


def seen_scenes(n: int, gen: torch.Generator) -> Tensor:
    """Scenes (n, 3) of the 20 pairs of colour and shape that training may show."""
    seen = SCENES[~UNSEEN]
    return seen[torch.randint(len(seen), (n,), generator=gen)]


def fit_reranker(s: Settings, seed: int) -> TinyCLIP:
    """A contrastive model of other images, without the unseen pairs either."""
    gen = generator(seed, "rerank images")
    scenes = seen_scenes(s.rerank_train, gen)
    clip = init_model(lambda: TinyCLIP(3 * 64, WORDS), seed, "clip")
    fit_clip(
        clip, draw(scenes, gen), caption(scenes), seed, steps=s.rerank_steps, batch=min(128, len(scenes)), lr=s.lr_clip
    )
    return clip.requires_grad_(requires_grad=False)


def eight_bit(image: Tensor) -> list[list[list[int]]]:
    """An image (3, 8, 8) as 8 x 8 colours of 0 to 255."""
    levels: list[list[list[int]]] = (image.clamp(0, 1) * 255).round().int().permute(1, 2, 0).tolist()
    return levels


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Both stages, samples of pairs never seen, and the best of N by a contrastive model."""
    s = settings
    gen = generator(seed, "images")
    scenes = seen_scenes(s.train, gen)
    images = draw(scenes, gen)
    dvae = fit_dvae(images, s, seed)
    gpt = fit_gpt(torch.cat([caption(scenes), WORDS + dvae.codes(images)], dim=1), s, seed)
    clip = fit_reranker(s, seed)

    # claim 1: each unseen pair in the four places
    prompts = SCENES[UNSEEN].repeat(s.samples // 4, 1)
    made = dvae.redraw(sample(gpt, caption(prompts), generator(seed, "sampling")))
    shuffled = prompts[torch.randperm(len(prompts), generator=generator(seed, "permuted"))]

    # claim 2: candidates of every scene in the order of a contrastive model
    prompts2, N = SCENES.repeat(s.repeats, 1), s.candidates
    t = caption(prompts2).repeat_interleave(N, dim=0)
    drawn = dvae.redraw(sample(gpt, t, generator(seed, "candidates")))  # (prompts * N, 3, 8, 8)
    match = (clip.embed_images(drawn) * clip.embed_texts(t)).sum(1).view(-1, N)
    good = right(drawn, prompts2.repeat_interleave(N, dim=0)).view(-1, N)
    best = match.argmax(1)
    err_mean = 1 - float(good.mean())
    err_top = 1 - float(good.gather(1, best[:, None]).mean())
    metrics = {
        "zs_acc": float(right(made, prompts).mean()),
        "zs_shuffled": float(right(made, shuffled).mean()),
        "err_cut": 1 - err_top / err_mean if err_mean >= 0.02 else 0.0,
    }

    rows: list[dict[str, Any]] = []
    unseen = UNSEEN.repeat(s.repeats)
    for n in [2**i for i in range(N.bit_length())]:
        top = good.gather(1, match[:, :n].argmax(1, keepdim=True))[:, 0]
        for pairs, part in (("seen", ~unseen), ("unseen", unseen)):
            rows.append({"panel": "rerank", "pairs": pairs, "candidates": n, "share": float(top[part].mean())})
    redrawn = dvae.redraw(dvae.codes(draw(prompts, generator(seed, "real"))))
    for score, value in (("drawn", made), ("redrawn", redrawn)):
        for pair, (colour, shape) in enumerate(HELD_OUT.tolist()):
            own = (prompts[:, 0] == colour) & (prompts[:, 1] == shape)
            share = float(right(value[own], prompts[own]).mean())
            rows.append({"panel": "pairs", "arm": score, "pair": f"pair_{pair}", "share": share})
    for pair, (colour, shape) in enumerate(HELD_OUT.tolist()):
        own = (prompts[:, 0] == colour) & (prompts[:, 1] == shape)
        first = (prompts2[:, 0] == colour) & (prompts2[:, 1] == shape)
        shown = torch.cat([draw(prompts[own][:1], generator(seed, "shown")), made[own][:8]])
        rows += [
            {"panel": "samples", "line": f"pair_{pair}", "position": i, "image": eight_bit(image)}
            for i, image in enumerate(shown)
        ]
        chosen = drawn.view(-1, N, 3, 8, 8)[first, best[first]]
        rows += [
            {"panel": "chosen", "line": f"pair_{pair}", "position": i, "image": eight_bit(image)}
            for i, image in enumerate(chosen)
        ]
    return Result(metrics, rows)
