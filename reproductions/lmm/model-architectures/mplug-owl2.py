"""mPLUG-Owl2: layer norms, keys and values of each modality apart, the rest of the decoder shared (arXiv:2311.04257).

Symbols: h token states (B, T, d) · m modality, 0 text or 1 visual; the first n positions are visual · W^K_m, W^V_m key
and value matrices of modality m, W^Q the one query matrix · LN_m layer norm of modality m · d_h width of a head
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.attention import MultiHeadAttention, attention
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import Block, init_weights

PATCHES, FEATURES, CLASSES, MODULUS = 9, 24, 4, 11
EQUALS, QUESTION = MODULUS, MODULUS + 1  # tokens: the numbers 0 .. 10, the equals sign, "how many of class q?"
TEXT, VISUAL = 0, 1
Images = tuple[Tensor, Tensor, Tensor]  # features (B, 9, FEATURES), questions (B, 1), counts (B,)


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate is the best of 2e-3, 4e-3, 8e-3, 1.6e-2 by the final loss on pilot seeds 0 and 1."""

    d: int = 48
    wider: int = 52
    layers: int = 2
    heads: int = 4
    large_dims: int = 3
    large_scale: float = 20.0
    noise: float = 0.5
    batch: int = 32
    steps: int = 300
    test: int = 500
    every: int = 50  # steps between two points of the curves
    lr_shared: float = 8e-3  # so too wider and normalised
    lr_module: float = 4e-3
    lr_even: float = 4e-3  # of the decoder and of the module without large features


SHORT = Settings(d=8, wider=12, batch=4, steps=2, test=10, every=2)


class Apart(nn.ModuleList):
    """A layer and its copy, one for each modality."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__([layer, copy.deepcopy(layer)])

    def forward(self, h: Tensor, n: int) -> Tensor:
        """(B, T, d) -> (B, T, d): the n visual positions, which come first, and the words after them."""
        return torch.cat([self[VISUAL](h[:, :n]), self[TEXT](h[:, n:])], dim=1)


class ModalityAdaptiveBlock(nn.Module):
    """A block whose layer norms, keys and values depend on the modality (Section 3.2); it grows out of an ordinary one."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        attn = block.attn
        assert isinstance(attn, MultiHeadAttention)
        self.n_heads = attn.n_heads
        self.ln1, self.ln2 = Apart(block.ln1), Apart(block.ln2)
        self.k_proj, self.v_proj = Apart(attn.k_proj), Apart(attn.v_proj)
        self.q_proj, self.o_proj, self.mlp = attn.q_proj, attn.o_proj, block.mlp

    def forward(self, h: Tensor, n: int) -> Tensor:
        """(B, T, d) -> (B, T, d); one causal attention runs over both modalities."""
        x = self.ln1(h, n)
        q, k, v = (
            y.unflatten(2, (self.n_heads, -1)).transpose(1, 2)  # (B, heads, T, d_h)
            for y in (self.q_proj(x), self.k_proj(x, n), self.v_proj(x, n))
        )
        h = h + self.o_proj(attention(q, k, v, causal=True).transpose(1, 2).flatten(2))
        output: Tensor = h + self.mlp(self.ln2(h, n))
        return output


class Owl(nn.Module):
    """Features through a linear connector, then words, all in one causal decoder; the last position answers."""

    def __init__(self, d: int, s: Settings, *, module: bool = False, norm: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self.norm = norm  # mean and standard deviation of each feature, (FEATURES,) both
        self.connector = nn.Linear(FEATURES, d)
        self.words = nn.Embedding(QUESTION + CLASSES, d)
        self.positions = nn.Embedding(PATCHES + 1, d)
        blocks = [Block(d, s.heads, causal=True) for _ in range(s.layers)]
        self.ln_out, self.head = nn.LayerNorm(d), nn.Linear(d, MODULUS, bias=False)
        self.blocks = nn.ModuleList(blocks)
        init_weights(self, d)
        if module:  # starts as the shared decoder, both branches equal
            self.blocks = nn.ModuleList(ModalityAdaptiveBlock(block) for block in blocks)

    def forward(self, features: Tensor | None, words: Tensor) -> Tensor:
        """Patches (B, 9, FEATURES), if any, and words (B, W) after them -> logits (B, MODULUS) of the answer."""
        h, n = self.words(words), 0
        if features is not None:
            if self.norm is not None:
                features = (features - self.norm[0]) / self.norm[1]
            h, n = torch.cat([self.connector(features), h], dim=1), PATCHES
        h = h + self.positions.weight[: h.shape[1]]
        for block in self.blocks:
            h = block(h, n) if isinstance(block, ModalityAdaptiveBlock) else block(h)
        logits: Tensor = self.head(self.ln_out(h[:, -1]))
        return logits


def images(n: int, seed: int, large_dims: int, s: Settings, gen: torch.Generator) -> Images:
    """Noisy patch features, some of them `large_scale` times larger, and "how many of class q?"; counts 0 .. 9 alike."""
    centroids = torch.randn(CLASSES, FEATURES, generator=generator(seed, "centroids"))
    q, count = torch.randint(CLASSES, (n, 1), generator=gen), torch.randint(PATCHES + 1, (n,), generator=gen)
    other = (q + torch.randint(1, CLASSES, (n, PATCHES), generator=gen)) % CLASSES
    place = torch.rand(n, PATCHES, generator=gen).argsort(1)
    patches = torch.where(place < count[:, None], q, other)  # (n, 9) classes
    features = centroids[patches] + s.noise * torch.randn(n, PATCHES, FEATURES, generator=gen)
    features[..., :large_dims] *= s.large_scale
    return features, QUESTION + q, count


def sums(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Words "a b =" (n, 3) and answers a + b mod 11 (n,) of the pairs (n,) 0 .. 120."""
    a, b = pairs // MODULUS, pairs % MODULUS
    return torch.stack([a, b, torch.full_like(a, EQUALS)], dim=1), (a + b) % MODULUS


@torch.no_grad()
def scores(model: Owl, test: Images) -> dict[str, float]:
    """Share of right counts on the test images and of right sums among all 121."""
    words, total = sums(torch.arange(MODULUS**2))
    right = {"counts": model(*test[:2]).argmax(1) == test[2], "sums": model(None, words).argmax(1) == total}
    return {task: answers.float().mean().item() for task, answers in right.items()}


def fit(model: Owl, large_dims: int, lr: float, s: Settings, seed: int) -> list[dict[str, float]]:
    """Train in place on both tasks in every step; the scores along the way."""
    test, curve = images(s.test, seed, large_dims, s, generator(seed, "test")), []

    def batches() -> Iterator[tuple[Images, Tensor]]:
        gen = generator(seed, "batches")
        for step in range(s.steps):
            if step % s.every == 0:
                curve.append({"step": step, **scores(model, test)})
            yield images(s.batch, seed, large_dims, s, gen), torch.randint(MODULUS**2, (s.batch,), generator=gen)

    def loss(batch: tuple[Images, Tensor]) -> Tensor:
        (features, question, count), pairs = batch
        words, total = sums(pairs)
        return F.cross_entropy(model(features, question), count) + F.cross_entropy(model(None, words), total)

    train(model, loss, batches(), lr, steps=s.steps, schedule="onecycle")
    return [*curve, {"step": s.steps, **scores(model, test)}]


@torch.no_grad()
def identity(seed: int, s: Settings) -> tuple[float, float]:
    """Largest difference of a block to the module grown out of it; mean difference once visual W^K and W^V double."""
    block = init_model(lambda: Block(s.d, s.heads, causal=True), seed, "identity").double()
    gen = generator(seed, "identity")
    for weights in block.parameters():  # layer norms that do nothing yet would hide a mix-up
        weights.add_(0.1 * torch.randn(weights.shape, generator=gen))
    module, h = ModalityAdaptiveBlock(block), torch.randn(s.batch, PATCHES + 1, s.d, generator=gen).double()
    error = (module(h, PATCHES) - block(h)).abs().max().item()
    for apart in (module.k_proj, module.v_proj):
        apart[VISUAL].get_parameter("weight").mul_(2)
    return error, (module(h, PATCHES) - block(h)).abs().mean().item()


def run(seed: int, settings: Settings = Settings()) -> Result:
    """The module against three decoders that share everything; beside them, both designs without large features."""
    s = settings
    seen = images(s.test, seed, s.large_dims, s, generator(seed, "norm"))[0].flatten(0, 1)  # (9 * test, FEATURES)
    norm = seen.mean(0), seen.std(0)
    arms: dict[str, tuple[Callable[[], Owl], int, float]] = {
        "shared": (lambda: Owl(s.d, s), s.large_dims, s.lr_shared),
        "wider": (lambda: Owl(s.wider, s), s.large_dims, s.lr_shared),
        "normalised": (lambda: Owl(s.d, s, norm=norm), s.large_dims, s.lr_shared),
        "module": (lambda: Owl(s.d, s, module=True), s.large_dims, s.lr_module),
        "even_shared": (lambda: Owl(s.d, s), 0, s.lr_even),
        "even_module": (lambda: Owl(s.d, s, module=True), 0, s.lr_even),
    }
    rows: list[dict[str, Any]] = []
    final = {}
    for arm, (make, large, lr) in arms.items():
        curve = fit(init_model(make, seed), large, lr, s, seed)
        for panel, task in (("counts", "counts"), ("sums", "sums")) if large else (("even", "counts"),):
            rows += [{"panel": panel, "arm": arm, "step": at["step"], "accuracy": at[task]} for at in curve]
        final[arm] = curve[-1]
    best = max(("shared", "wider", "normalised"), key=lambda arm: final[arm]["counts"])
    error, control = identity(seed, s)
    gain = {task: final["module"][task] - final[best][task] for task in ("counts", "sums")}
    metrics = {"vqa_gain": gain["counts"], "text_change": gain["sums"]}
    return Result({"mam_identity": error, "mam_control": control, **metrics}, rows)
