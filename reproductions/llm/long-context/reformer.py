"""Reformer: attention within buckets of similar vectors, and layers that run backwards (arXiv:2001.04451).

Symbols: q queries (B, T, d), of which the keys k are the directions · h(x) = argmax [xR; -xR] bucket of x, of b · R random
(d, b / 2), a new one in each round · chunk neighbours in the order of the buckets · x1, x2 and y1, y2 the two
streams before and after a reversible layer (B, T, d) · F attention, G MLP
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.attention import MultiHeadAttention, causal_mask
from reproductions.lab.duplication import duplication
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, train
from reproductions.lab.transformer import FeedForward, TinyGPT, init_weights

Attend = Callable[[Tensor, Tensor], Tensor]
ALONE = 1e5  # taken off the score of a token with itself, which then counts only where there is nothing else


@dataclass(frozen=True)
class Settings:
    """Sizes and the rate of the one model that is trained."""

    d: int = 64
    symbols: int = 32
    length: int = 31  # of the string that is written twice; with two separators 64 tokens
    batch: int = 32
    steps: int = 300
    lr: float = 3e-3  # of 3e-3, 1e-2: with both, pilot seed 0 copies without a mistake
    buckets: int = 16
    chunk: int = 4
    rounds: tuple[int, ...] = (1, 2, 4, 8)
    test_strings: int = 400
    depths: tuple[int, ...] = (2, 4, 6, 8)  # of the reversible stacks
    width: int = 32
    heads: int = 2
    tokens: int = 32


SHORT = Settings(steps=2, test_strings=3, depths=(2, 8), width=8, tokens=4)


def full_attention(q: Tensor, v: Tensor) -> Tensor:
    """Causal attention with keys of unit length made from the queries (Section 2, shared-QK): (B, T, d)."""
    T = q.shape[1]
    scores = q @ F.normalize(q, dim=2).mT - ALONE * torch.eye(T, dtype=q.dtype)
    return scores.masked_fill(~causal_mask(T), -torch.inf).softmax(-1) @ v


def lsh_buckets(q: Tensor, rounds: int, buckets: int, gen: torch.Generator) -> Tensor:
    """h(x) = argmax [xR; -xR] of each token in each round: (rounds, B, T)."""
    R = torch.randn(rounds, 1, q.shape[2], buckets // 2, generator=gen, dtype=q.dtype)
    projected = q @ R  # (rounds, B, T, b / 2)
    return torch.cat([projected, -projected], -1).argmax(-1)


def sorted_by(bucket: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens in the order of bucket, then of position, and the place of each token in it: both (rounds, B, T)."""
    order = bucket.argsort(dim=-1, stable=True)
    return order, order.argsort(-1)


def scored(chunk_q: Tensor, chunk_k: Tensor) -> Tensor:
    """Whether a query meets a key: in its own chunk or the one before."""
    return (chunk_q == chunk_k) | (chunk_q == chunk_k + 1)


def lsh_attention(q: Tensor, v: Tensor, bucket: Tensor, size: int) -> Tensor:
    """Each token attends within its chunk and the one before, rounds are merged (Section 2): (B, T, d).

    A key that a query meets in N rounds has its score lowered by log N, so that the merged softmax counts it once.
    """
    order, place = sorted_by(bucket)
    chunk = place // size  # (rounds, B, T)
    outputs, totals = [], []
    for i, back in zip(order, place, strict=True):  # one round, (B, T)
        i_q = i.unflatten(1, (-1, size))  # (B, chunks, size): positions of queries
        i_k = torch.cat([i_q.roll(1, dims=1), i_q], 2)  # (B, chunks, 2 size): the chunk before, then its own
        q_c, k_c, v_c = take(q, i_q), F.normalize(take(q, i_k), dim=3), take(v, i_k)
        scores = q_c @ k_c.mT  # (B, chunks, size, 2 size)
        row, column = i_q[..., :, None], i_k[..., None, :]
        N = scored(at(chunk, i_q)[..., :, None], at(chunk, i_k)[..., None, :]).sum(0)
        scores = scores - N.clamp(min=1).to(q.dtype).log() - ALONE * (row == column)
        hidden = row < column  # later tokens, and what stands before the first chunk
        hidden[:, 0, :, :size] = True
        scores = scores.masked_fill(hidden, -torch.inf)
        total = scores.logsumexp(-1)  # (B, chunks, size)
        output = (scores - total[..., None]).exp() @ v_c  # (B, chunks, size, d)
        outputs.append(take(output.flatten(1, 2), back))
        totals.append(total.flatten(1).gather(1, back))
    share = torch.stack(totals).softmax(0)[..., None]  # of each round in the softmax denominator (rounds, B, T, 1)
    return (share * torch.stack(outputs)).sum(0)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, T, d) at index (B, ...): (B, ..., d)."""
    return x[torch.arange(len(x)).view(-1, *[1] * (index.dim() - 1)), index]


def at(chunk: Tensor, index: Tensor) -> Tensor:
    """Chunk numbers (rounds, B, T) of the tokens at index (B, chunks, k): (rounds, B, chunks, k)."""
    return chunk.gather(2, index.flatten(1).expand(len(chunk), -1, -1)).unflatten(2, index.shape[1:])


def covered(bucket: Tensor, size: int) -> float:
    """Share of the causal pairs of different tokens that are scored in any of the rounds."""
    chunk = sorted_by(bucket)[1] // size
    pairs = scored(chunk[..., :, None], chunk[..., None, :]).any(0)  # (B, T, T)
    return float(pairs[:, causal_mask(pairs.shape[1]).tril(-1)].float().mean())


class SharedQKAttention(nn.Module):
    """One head; queries and keys have one projection, and `attend` decides which pairs are scored."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.qk_proj, self.v_proj, self.o_proj = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.attend: Attend = full_attention

    def forward(self, x: Tensor, _mask: Tensor | None = None) -> Tensor:  # (B, T, d)
        return self.o_proj(self.attend(self.qk_proj(x), self.v_proj(x)))


class ReversibleLayer(nn.Module):
    """y1 = x1 + F(x2), y2 = x2 + G(y1) (Section 3)."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.F = nn.Sequential(nn.LayerNorm(d), MultiHeadAttention(d, heads, causal=True))
        self.G = nn.Sequential(nn.LayerNorm(d), FeedForward(d))

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = x1 + self.F(x2)
        return y1, x2 + self.G(y1)

    def inverse(self, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
        x2 = y2 - self.G(y1)
        return y1 - self.F(x2), x2

    def backward_pass(self, y1: Tensor, y2: Tensor, g1: Tensor, g2: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Rebuild the inputs, evaluating F and G once more, and take the gradients g1, g2 of y1, y2 through.

        Returns:
            [x1, x2 and their gradients], and the gradients of the parameters in the order of `parameters()`.
        """
        with torch.enable_grad():
            y1 = y1.detach().requires_grad_()
            G_y1 = self.G(y1)
            of_y1, *of_G = torch.autograd.grad(G_y1, [y1, *self.G.parameters()], g2)
            g1 = g1 + of_y1
            x2 = (y2 - G_y1).detach().requires_grad_()
            F_x2 = self.F(x2)
            of_x2, *of_F = torch.autograd.grad(F_x2, [x2, *self.F.parameters()], g1)
        return [(y1 - F_x2).detach(), x2.detach(), g1, g2 + of_x2], of_F + of_G


class ReversibleStack(torch.autograd.Function):
    """Runs reversible layers and keeps for the backward pass what comes out of the last one, nothing else."""

    @staticmethod
    def forward(ctx: Any, x1: Tensor, x2: Tensor, layers: list[ReversibleLayer], *_parameters: Tensor) -> Any:
        for layer in layers:
            x1, x2 = layer(x1, x2)
        ctx.layers = layers
        ctx.save_for_backward(x1, x2)
        return x1, x2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        state, of_parameters = [*ctx.saved_tensors, *gradients], []
        for layer in reversed(ctx.layers):
            state, of_layer = layer.backward_pass(*state)
            of_parameters = of_layer + of_parameters
        return (*state[2:], None, *of_parameters)


def stack(depth: int, seed: int, s: Settings) -> list[ReversibleLayer]:
    """Untrained layers in float64."""
    return [init_model(lambda: ReversibleLayer(s.width, s.heads), seed, f"layer {i}").double() for i in range(depth)]


def run_reversible(layers: list[ReversibleLayer], x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    """Layers through `ReversibleStack`."""
    return ReversibleStack.apply(x1, x2, layers, *(p for layer in layers for p in layer.parameters()))


def run_plainly(layers: list[ReversibleLayer], x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    """The same layers with ordinary backpropagation."""
    for layer in layers:
        x1, x2 = layer(x1, x2)
    return x1, x2


def run_ordinary(layers: list[ReversibleLayer], x: Tensor, _x2: Tensor) -> Tensor:
    """The same F and G in ordinary residual layers, which have one stream."""
    for layer in layers:
        x = x + layer.F(x)
        x = x + layer.G(x)
    return x


def bytes_kept(forward: Callable[[], object], layers: list[ReversibleLayer]) -> int:
    """What autograd really holds after a forward pass, each storage once, without parameters."""
    weights = {p.untyped_storage().data_ptr() for layer in layers for p in layer.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        _graph = forward()  # alive until the sum is taken, so that no storage is freed and its place taken again
        return sum(kept.values())


def reversibility(seed: int, s: Settings) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Errors of the reversible passes at the largest depth, growth of memory with depth."""
    most = max(s.depths)
    layers = stack(most, seed, s)
    x = torch.randn(2, 2, s.tokens, s.width, generator=generator(seed, "x"), dtype=torch.float64)
    weights = torch.randn(2, 2, s.tokens, s.width, generator=generator(seed, "loss"), dtype=torch.float64)
    inputs = [part.clone().requires_grad_() for part in x]
    leaves = [*inputs, *(p for layer in layers for p in layer.parameters())]

    def gradients(how: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        y1, y2 = how(layers, *inputs)
        found = torch.autograd.grad((y1 * weights[0] + y2 * weights[1]).sum(), leaves)
        return torch.cat([gradient.flatten() for gradient in found])

    with torch.no_grad():
        back = run_plainly(layers, *x)
        for layer in reversed(layers):
            back = layer.inverse(*back)
    kept = {
        (how, depth): bytes_kept(partial(runs, layers[:depth], *inputs), layers)
        for how, runs in (("reversible", run_reversible), ("ordinary", run_ordinary))
        for depth in s.depths
    }
    metrics = {
        "rev_recon_err": float((torch.stack(back) - x).abs().max()),
        "rev_grad_err": float((gradients(run_reversible) - gradients(run_plainly)).abs().max()),
        "mem_growth_rev": kept["reversible", most] / kept["reversible", min(s.depths)],
        "mem_growth_plain": kept["ordinary", most] / kept["ordinary", min(s.depths)],
    }
    return metrics, [{"layers": how, "depth": depth, "kilobytes": size / 1000} for (how, depth), size in kept.items()]


def copier(seed: int, s: Settings) -> TinyGPT:
    """One layer with one head, trained with full attention to write strings twice."""

    def build() -> TinyGPT:
        model = TinyGPT(s.symbols + 1, s.d, layers=1, heads=1, context=2 * s.length + 2)
        model.blocks[0].attn = SharedQKAttention(s.d)
        init_weights(model, s.d)
        return model

    model, rng = init_model(build, seed), generator(seed, "strings")
    batches = (duplication(s.batch, s.length, s.symbols, rng) for _ in range(s.steps))

    def loss(b: Tensor) -> Tensor:
        return F.cross_entropy(second_half(model, b).flatten(0, 1), b[:, s.length + 2 :].flatten())

    train(model, loss, batches, s.lr, steps=s.steps, warmup=20, schedule="cosine")
    return model


def second_half(model: TinyGPT, tokens: Tensor) -> Tensor:
    """Logits of the symbols after the second separator, given all that stands before each: (B, L, vocab)."""
    return model(tokens)[:, tokens.shape[1] // 2 : -1]


def copying(seed: int, s: Settings) -> list[dict[str, Any]]:
    """Accuracy and covered pairs of one trained model, with every way of choosing pairs and number of rounds."""
    model = copier(seed, s)
    layer = model.blocks[0].attn
    tokens = duplication(s.test_strings, s.length, s.symbols, generator(seed, "test strings"))
    most = max(s.rounds)

    def score(attend: Attend) -> float:
        layer.attend = attend
        return accuracy(second_half(model, tokens), tokens[:, s.length + 2 :])

    with torch.no_grad():
        x = model.embed(tokens) + model.position_embedding.weight
        q = layer.qk_proj(model.blocks[0].ln1(x))  # (n, T, d)
        similar = lsh_buckets(q, most, s.buckets, generator(seed, "R"))
        at_random = torch.randint(0, s.buckets, similar.shape, generator=generator(seed, "random buckets"))
        full = score(full_attention)
        rows: list[dict[str, Any]] = [{"how": "full", "rounds": n, "covered": 1.0, "accuracy": full} for n in s.rounds]
        for how, bucket in (("lsh", similar), ("random", at_random)):
            for n in s.rounds:
                acc = score(partial(lsh_attention, bucket=bucket[:n], size=s.chunk))
                rows.append({"how": how, "rounds": n, "covered": covered(bucket[:n], s.chunk), "accuracy": acc})
    return rows


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Check the reversible layers, then evaluate one copier with more and more rounds of hashing."""
    s = settings
    metrics, kept = reversibility(seed, s)
    rows = copying(seed, s)
    found = {(row["how"], row["rounds"]): row for row in rows}
    metrics |= {f"acc_lsh{n}": found["lsh", n]["accuracy"] for n in (1, 4, 8)}
    metrics |= {
        "acc_full": found["full", 1]["accuracy"],
        "acc_random4": found["random", 4]["accuracy"],
        "covered_random4": found["random", 4]["covered"],
    }
    figure = [{"panel": "memory", **row} for row in kept]
    figure += [{"panel": "rounds", **row} for row in rows]
    figure += [{"panel": "pairs", **row} for row in rows if row["how"] != "full"]
    return Result(metrics, figure)
