"""FlexGen: generation with weights on disk, by blocks of batches, in 4 bits, after a linear program (arXiv:2303.06865).

Symbols: n tokens to generate · n_b batches in a block · B sequences of a batch · T new, S cached positions ·
a, b smallest and largest number of a group · W, C size of weights and cache in GB · w, c their fractions on GPU, CPU, disk
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from reproductions.lab import Result
from reproductions.lab.attention import attention
from reproductions.lab.characters import character_split, next_token_loss, texts
from reproductions.lab.corpus import windows
from reproductions.lab.seeding import generator, init_model, numpy_generator
from reproductions.lab.training import count_parameters, train
from reproductions.lab.transformer import Block, TinyGPT

Array = NDArray[np.float64]
Cache = tuple[Tensor, Tensor]  # keys and values (B, S, d) of one layer
Pack = Callable[[Tensor], Tensor]  # gives the numbers that compression leaves of a tensor
GROUP = 64  # numbers with a range of their own
GPU, CPU, DISK = np.eye(3)  # a tensor that lies wholly in one place


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; the rate has the least held-out loss on pilot seeds 1 and 2, of 2.5e-3, 5e-3, 1e-2, 2e-2."""

    d: int = 64
    layers: int = 4
    heads: int = 4
    length: int = 64
    batch: int = 12
    steps: int = 300
    lr: float = 5e-3
    B: int = 8
    prompt: int = 32
    n: int = 16
    n_b: int = 4
    drawn_n_b: tuple[int, ...] = (1, 2, 4, 8)  # for the figure
    machines: int = 30
    grid: int = 20  # steps of 5%
    W: float = 60.0
    batch_cache: float = 6.0  # GB
    planned_n_b: tuple[int, ...] = (1, 2, 4, 8, 16, 32)


SHORT = Settings(steps=2, batch=64, B=2, prompt=4, n=2, machines=3, grid=4)


def with_cache(block: Block, x: Tensor, cache: Cache | None, pack: Pack) -> tuple[Tensor, Cache]:
    """New positions (B, T, d) join the cached keys and values and attend to them (Section 3)."""

    def heads(y: Tensor) -> Tensor:  # (B, ., d) -> (B, h, ., d / h)
        return y.unflatten(2, (block.attn.n_heads, -1)).transpose(1, 2)

    h = block.ln1(x)
    k, v = pack(block.attn.k_proj(h)), pack(block.attn.v_proj(h))
    if cache is not None:
        k, v = torch.cat([cache[0], k], 1), torch.cat([cache[1], v], 1)  # (B, S + T, d)
    mixed = attention(heads(block.attn.q_proj(h)), heads(k), heads(v), causal=True)
    x = x + block.attn.o_proj(mixed.transpose(1, 2).flatten(2))
    return x + block.mlp(block.ln2(x)), (k, v)


def embed(model: TinyGPT, tokens: Tensor, seen: int = 0) -> Tensor:
    """The tokens (B, t) from position `seen` on: (B, t - seen, d)."""
    return (model.embed(tokens) + model.position_embedding.weight[: tokens.shape[1]])[:, seen:]


def write(model: TinyGPT, block: Sequence[Tensor], n: int, load: Callable[[int], Block]) -> list[Tensor]:
    """Add n tokens to each batch (B, t) of a block; a loaded layer serves all of them (Section 4).

    Row by row is a block of one batch after another. Embedding and head stay in memory.
    """
    written, caches = list(block), [[None] * len(model.blocks) for _ in block]
    for _ in range(n):
        seen = 0 if caches[0][0] is None else caches[0][0][0].shape[1]
        x = [embed(model, tokens, seen) for tokens in written]
        for j in range(len(model.blocks)):
            layer = load(j)
            for i, cache in enumerate(caches):
                x[i], cache[j] = with_cache(layer, x[i], cache[j], nn.Identity())
        chosen = [model.head(model.ln_out(y[:, -1:])).argmax(-1) for y in x]  # (B, 1) each
        written = [torch.cat(pair, 1) for pair in zip(written, chosen, strict=True)]
    return written


def write_in_memory(model: TinyGPT, tokens: Tensor, n: int) -> Tensor:
    """The same with the whole model and without a cache: (B, t) -> (B, t + n)."""
    for _ in range(n):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    return tokens


class WeightFile:
    """Reads blocks from a file that holds their float32 weights in order, and counts the bytes of each read."""

    def __init__(self, file: BinaryIO, like: Block) -> None:
        self.file, self.bytes_read = file, 0
        self.resident, self.size = copy.deepcopy(like), 4 * count_parameters(like)

    def load(self, j: int) -> Block:
        """Block j in place of the one that was in memory."""
        self.file.seek(j * self.size)
        content = bytearray(self.file.read(self.size))
        self.bytes_read += len(content)
        vector_to_parameters(torch.frombuffer(content, dtype=torch.float32), self.resident.parameters())
        return self.resident


def four_bits(x: Tensor, dim: int) -> Tensor:
    """Round to 16 levels between the smallest and the largest number along `dim` (Section 5)."""
    a, b = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    step = ((b - a) / 15).clamp(min=torch.finfo(x.dtype).tiny)
    return a + ((x - a) / step).round() * step


def in_groups(x: Tensor) -> Tensor:
    """Every 64 numbers of the last dimension have their own range."""
    return torch.cat([four_bits(part, -1) for part in x.split(GROUP, -1)], -1)


def as_a_whole(x: Tensor) -> Tensor:
    """The control: one range for the tensor."""
    return four_bits(x.flatten(), 0).view_as(x)


def with_packed_weights(model: TinyGPT, pack: Pack) -> TinyGPT:
    """A copy whose matrices are compressed, in groups along the output channels; biases and norms stay."""
    packed = copy.deepcopy(model)
    for layer in packed.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = pack(layer.weight.data.T).T  # stored as (d_out, d_in)
        elif isinstance(layer, nn.Embedding):
            layer.weight.data = pack(layer.weight.data)
    return packed


def held_out_loss(model: TinyGPT, rows: Tensor, pack: Pack, size: int) -> float:
    """Mean loss on rows (m, T + 1), `size` at a time; every position reads keys and values as they are stored."""
    total = 0.0
    for part in rows.split(size):
        x = embed(model, part[:, :-1])
        for block in model.blocks:
            x, _ = with_cache(block, x, None, pack)
        logits = model.head(model.ln_out(x))  # (size, T, vocab)
        total += float(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    return total / rows[:, 1:].numel()


class Machine(NamedTuple):
    """Capacities of GPU, CPU and disk in GB; GB per second read from each, and passed from CPU to GPU."""

    room: tuple[float, float, float]
    gpu: float
    cpu: float
    disk: float
    link: float


def random_machine(rng: np.random.Generator) -> Machine:
    """Drawn evenly on a logarithmic scale, but for the disk's capacity: everything fits there."""
    low, high = (8, 32, 300, 20, 0.5, 4), (80, 256, 2000, 200, 8, 32)
    room_gpu, room_cpu, *rates = np.exp(rng.uniform(np.log(low), np.log(high)))
    return Machine((room_gpu, room_cpu, 1000.0), *rates)


def throughput(w: Array, c: Array, m: Machine, n_b: int, s: Settings) -> Array:
    """Tokens per second of plans (..., 3), 0 where they do not fit; judges all plans, wherever they come from.

    Loading and computing overlap, so the slowest part of a step decides (Section 4.3). The CPU computes attention over
    the cache that is not on the GPU. Activations stay on the GPU: those of one token per sequence are small.
    """
    C = n_b * s.batch_cache
    from_disk = (w[..., 2] * s.W + c[..., 2] * C) / m.disk
    over_link = (1 - w[..., 0]) * s.W / m.link
    compute = (n_b * s.W + c[..., 0] * C) / m.gpu + (1 - c[..., 0]) * C / m.cpu  # reads the weights once per batch
    fits = (w * s.W + c * C <= np.array(m.room) + 1e-6).all(-1)
    return fits * n_b * s.B / np.maximum(np.maximum(from_disk, over_link), compute)


def linear_program(m: Machine, n_b: int, s: Settings) -> tuple[Array, Array]:
    """The fractions w and c with the shortest step t: a linear program in (w, c, t) (Section 4.3)."""
    W, C = s.W, n_b * s.batch_cache
    times = [  # each at most t
        [0, 0, W / m.disk, 0, 0, C / m.disk, -1],
        [0, W / m.link, W / m.link, 0, 0, 0, -1],
        [0, 0, 0, C / m.gpu, C / m.cpu, C / m.cpu, -1],
    ]
    memory = np.hstack([W * np.eye(3), C * np.eye(3), np.zeros((3, 1))])  # each at most the room of its place
    limits = [0, 0, -n_b * W / m.gpu, *m.room]
    wholes = [[1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0]]  # w sums to 1, and c
    x = linprog([0, 0, 0, 0, 0, 0, 1], np.vstack([times, memory]), limits, wholes, [1, 1]).x
    return x[:3], x[3:6]


def fastest_first(m: Machine, n_b: int, s: Settings) -> tuple[Array, Array]:
    """Fill GPU, then CPU, then disk: with weights, then with the cache."""
    filled = np.cumsum(m.room)
    ends = np.minimum(filled, s.W), np.clip(filled - s.W, 0, n_b * s.batch_cache)
    w, c = (np.diff(end, prepend=0.0) / end[-1] for end in ends)
    return w, c


def best_throughputs(m: Machine, s: Settings) -> dict[str, float]:
    """Of the linear program, of all plans on the grid and of three fixed rules, each at its best size of block."""
    steps = [(i, j, s.grid - i - j) for i in range(s.grid + 1) for j in range(s.grid + 1 - i)]
    fractions = np.array(steps) / s.grid
    best: dict[str, float] = {}
    for n_b in s.planned_n_b:
        plans = {
            "lp": linear_program(m, n_b, s),
            "grid": (fractions[:, None], fractions[None]),
            "fastest": fastest_first(m, n_b, s),
            "split": (CPU, GPU),
            "disk": (DISK, DISK),
        }
        for name, (w, c) in plans.items():
            best[name] = max(best.get(name, 0.0), float(throughput(w, c, m, n_b, s).max()))
    return best


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train a model, let it write from a file under both schedules, compress it, and plan for random machines."""
    s = settings
    text = character_split(texts("en"), seed, s.length)
    model = init_model(lambda: TinyGPT(text.alphabet.size, s.d, s.layers, s.heads, s.length, token_shift=True), seed)
    batches = windows(text.training, s.length, s.batch, s.steps, generator(seed, "batches"))
    train(model, lambda b: next_token_loss(model, b), batches, s.lr, steps=s.steps, warmup=20, schedule="cosine")

    most = max(s.drawn_n_b)
    prompts = next(windows(text.training, s.prompt - 1, most * s.B, 1, generator(seed, "prompts"))).split(s.B)
    bytes_read, equal = {}, []
    with torch.no_grad(), TemporaryDirectory() as folder:
        expected = torch.cat([write_in_memory(model, prompt, s.n) for prompt in prompts])
        path = Path(folder) / "weights"
        path.write_bytes(parameters_to_vector(model.blocks.parameters()).numpy().tobytes())
        for n_b in s.drawn_n_b:
            for schedule, size in (("rows", 1), ("block", n_b)):
                with path.open("rb", buffering=0) as file:
                    weights, written = WeightFile(file, model.blocks[0]), []
                    for start in range(0, n_b, size):
                        written += write(model, prompts[start : min(start + size, n_b)], s.n, weights.load)
                bytes_read[schedule, n_b] = weights.bytes_read
                equal.append(torch.equal(torch.cat(written), expected[: n_b * s.B]))

        grouped, whole = (with_packed_weights(model, pack) for pack in (in_groups, as_a_whole))
        arms = {
            "full": (model, nn.Identity()),
            "weights": (grouped, nn.Identity()),
            "groups": (grouped, in_groups),
            "whole": (whole, as_a_whole),
        }
        losses = {arm: held_out_loss(m, text.held_out, pack, s.batch) for arm, (m, pack) in arms.items()}

    rng = numpy_generator(seed, "machines")
    plans = [best_throughputs(random_machine(rng), s) for _ in range(s.machines)]
    rules = ("fastest", "split", "disk")
    metrics = {
        "io_ratio_error": abs(bytes_read["rows", s.n_b] / bytes_read["block", s.n_b] - s.n_b),
        "output_equal": float(all(equal)),
        "q4_cost": losses["groups"] - losses["full"],
        "group_gain": losses["whole"] - losses["groups"],
        "lp_regret": max(1 - best["lp"] / best["grid"] for best in plans),
        "heuristic_gain": float(np.mean([best["lp"] / max(best[rule] for rule in rules) for best in plans])),
    }
    figure: list[dict[str, Any]] = [
        {"panel": "reads", "schedule": schedule, "batches": n_b, "kilobytes": total / (n_b * s.B * s.n * 1000)}
        for (schedule, n_b), total in bytes_read.items()
    ]
    figure += [{"panel": "loss", "arm": arm, "added": losses[arm] - losses["full"]} for arm in arms if arm != "full"]
    figure += [
        {"panel": "plans", "plan": name, "share": float(np.mean([best[name] / best["lp"] for best in plans]))}
        for name in ("grid", *rules)
    ]
    return Result(metrics, figure)
