"""LayerSkip: training that makes early layers readable, and drafts from them (arXiv:2404.16710).

Symbols: L layers, l = 0 .. L - 1 · h_l residual state after layer l (B, T, d) · g final normalisation and output head
of all exits · p_l rate at which layer l is dropped · w_l weight of its loss · E layers that draft · k guesses a round
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.characters import CharacterSplit, character_split, texts
from reproductions.lab.corpus import windows
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.speculative import (
    Decoding,
    Draft,
    TokenTree,
    at,
    chain_inputs,
    decode,
    greedy_text,
    held_out_prompts,
)
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; the rates have the least held-out loss on pilot seed 0, of 3e-3, 6e-3, 1.2e-2 each."""

    d: int = 48
    layers: int = 4
    length: int = 48
    batch: int = 16
    steps: int = 300
    lr: float = 6e-3  # by the last layer's loss
    lr_layerskip: float = 6e-3  # by the last layer's loss; at 1.2e-2 the loss after layer 2 is lower by 0.002
    lr_probe: float = 1.2e-2  # the edge, by the probe's loss
    p_max: float = 0.2
    exit_at: int = 2  # E
    guesses: int = 3  # k
    prompts: int = 40
    prompt_length: int = 12
    new: int = 32


SHORT = Settings(steps=2, prompts=2, new=4)


def drop_rates(p_max: float, L: int) -> Tensor:
    """p_l = p_max (2^(l / (L - 1)) - 1): nothing at the bottom, p_max at the top (Section 4.1)."""
    return p_max * (2 ** (torch.arange(L) / (L - 1)) - 1)


def states(model: TinyGPT, tokens: Tensor, keep: Tensor | None = None) -> list[Tensor]:
    """h_0 .. h_(L - 1). Where `keep` (L, B) is false, a layer passes the residual stream of that text on unchanged."""
    x, found = embedded(model, tokens), []
    for l, block in enumerate(model.blocks):
        x = block(x) if keep is None else torch.where(keep[l][:, None, None], block(x), x)
        found.append(x)
    return found


def embedded(model: TinyGPT, tokens: Tensor) -> Tensor:
    """What the first layer reads (B, T, d)."""
    assert model.position_embedding is not None
    return model.embed(tokens) + model.position_embedding.weight[: tokens.shape[1]]


def g(model: TinyGPT, h: Tensor) -> Tensor:
    """Logits at any exit: the one final normalisation and the one head (Section 4.1)."""
    return model.head(model.ln_out(h))


def loss_weights(step: int, L: int) -> Tensor:
    """w_l, summing to one (Section 4.1): the last layer always, of the early exits one a step in rotation.

    A weight is proportional to the number of layers below the exit.
    """
    on = torch.arange(L) == step % (L - 1)
    on[-1] = True
    weights = torch.arange(1, L + 1) * on
    return weights / weights.sum()


def layerskip_loss(model: TinyGPT, rows: Tensor, step: int, rates: Tensor, gen: torch.Generator) -> Tensor:
    """Layer dropout and early-exit loss on rows (B, T + 1)."""
    keep = torch.rand(len(rates), len(rows), generator=gen) >= rates[:, None]
    weighted = zip(loss_weights(step, len(rates)), states(model, rows[:, :-1], keep), strict=True)
    return torch.stack([w * cross_entropy(g(model, h), rows) for w, h in weighted if w > 0]).sum()


def cross_entropy(logits: Tensor, rows: Tensor) -> Tensor:
    """Mean over the targets of rows (B, T + 1)."""
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def trained(split: CharacterSplit, seed: int, s: Settings, recipe: str) -> TinyGPT:
    """A model with the "layerskip" recipe or the "standard" one: same start, same batches, frozen at the end."""
    model = init_model(lambda: TinyGPT(split.alphabet.size, s.d, s.layers, 4, s.length, token_shift=True), seed)
    batches = windows(split.training, s.length, s.batch, s.steps, generator(seed, "batches"))
    rates, gen = drop_rates(s.p_max, s.layers), generator(seed, "dropout")

    def loss(batch: tuple[int, Tensor]) -> Tensor:
        step, rows = batch
        if recipe == "standard":
            return cross_entropy(model(rows[:, :-1]), rows)
        return layerskip_loss(model, rows, step, rates, gen)

    lr = {"layerskip": s.lr_layerskip, "standard": s.lr}[recipe]
    train(model, loss, enumerate(batches), lr, steps=s.steps, warmup=20, schedule="cosine")
    return model.requires_grad_(requires_grad=False)


def train_probe(model: TinyGPT, split: CharacterSplit, seed: int, s: Settings) -> nn.Sequential:
    """The rival's extra module: a normalisation and a head of its own on the frozen states after layer E."""
    probe = nn.Sequential(nn.LayerNorm(s.d), nn.Linear(s.d, model.head.out_features, bias=False))
    for own, shared in zip(probe, (model.ln_out, model.head), strict=True):
        own.load_state_dict(shared.state_dict())

    def loss(rows: Tensor) -> Tensor:
        with torch.no_grad():
            h = states(model, rows[:, :-1])[s.exit_at - 1]
        return cross_entropy(probe(h), rows)

    batches = windows(split.training, s.length, s.batch, s.steps, generator(seed, "probe"))
    train(probe, loss, batches, s.lr_probe, steps=s.steps, warmup=20, schedule="cosine")
    return probe


def self_speculate(model: TinyGPT, prompts: Tensor, s: Settings) -> Decoding:
    """Draft with the first E layers, verify with the others on the same states (Section 4.3).

    The last guess is not run through the first layers, so no token after it comes for free.
    """

    def lower(text: Tensor) -> Tensor:  # a cache would hold these states from the drafting on
        x = embedded(model, text)
        for block in model.blocks[: s.exit_at]:
            x = block(x)
        return x

    def draft(tokens: Tensor, lengths: Tensor, _left: Tensor) -> Draft:
        nodes = tokens[:, :0]
        for _ in range(s.guesses):
            text, places = chain_inputs(tokens, lengths, nodes)
            h = at(lower(text), places[:, -1:])
            nodes = torch.cat([nodes, g(model, h).argmax(-1)], 1)
        return Draft(nodes)

    def score(tokens: Tensor, lengths: Tensor, nodes: Tensor, _tree: TokenTree) -> tuple[Tensor, Tensor]:
        text, places = chain_inputs(tokens, lengths, nodes)
        x = lower(text)
        for block in model.blocks[s.exit_at :]:
            x = block(x)
        h = at(x, places)
        return g(model, h), h

    return decode(prompts, s.new, TokenTree((1,) * s.guesses), draft, score, bonus=False)


def sequential_depth(done: Decoding, s: Settings) -> float:
    """Layers one after another, all rounds together, per emitted token, over the L of plain decoding.

    A round runs E layers for each guess, then the other L - E once for all positions.
    """
    return done.calls * (s.guesses * s.exit_at + s.layers - s.exit_at) / done.emitted / s.layers


def evaluations(done: Decoding, s: Settings) -> float:
    """The same with every layer counted once for each position: k positions in all L layers."""
    return done.calls * s.guesses * s.layers / done.emitted / s.layers


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train from one start with and without the recipe; compare exits and self-speculation."""
    s = settings
    split = character_split(texts("en"), seed, s.length)
    models = {recipe: trained(split, seed, s, recipe) for recipe in ("layerskip", "standard")}
    probe = train_probe(models["standard"], split, seed, s)

    rows = split.held_out
    with torch.no_grad():
        early = {arm: states(model, rows[:, :-1]) for arm, model in models.items()}
        losses = {arm: [float(cross_entropy(g(models[arm], h), rows)) for h in hs] for arm, hs in early.items()}
        probed = float(cross_entropy(probe(early["standard"][s.exit_at - 1]), rows))

    prompts = held_out_prompts(split, s.prompts, s.prompt_length)
    figure: list[dict[str, Any]] = [
        {"panel": "exits", "arm": arm, "exit": exit_at, "loss": loss}
        for arm, by_exit in losses.items()
        for exit_at, loss in enumerate(by_exit, 1)
    ]
    figure.append({"panel": "exits", "arm": "probe", "exit": s.exit_at, "loss": probed})
    depth, mismatch = {}, 0
    for arm, model in models.items():
        model.double()  # so that rounding flips no greedy choice
        done = self_speculate(model, prompts, s)
        mismatch += int((done.text != greedy_text(model, prompts, s.new)).sum())
        depth[arm] = sequential_depth(done, s)
        figure.append({"panel": "cost", "arm": arm, "what": "depth", "ratio": depth[arm]})
        figure.append({"panel": "cost", "arm": arm, "what": "evaluations", "ratio": evaluations(done, s)})
    metrics = {
        "exit2_ls": losses["layerskip"][s.exit_at - 1],
        "exit2_std": losses["standard"][s.exit_at - 1],
        "exit2_probe": probed,
        "last_ls": losses["layerskip"][-1],
        "last_std": losses["standard"][-1],
        "mismatch": float(mismatch),
        "layer_ratio_ls": depth["layerskip"],
        "layer_ratio_std": depth["standard"],
    }
    return Result(metrics, figure)
