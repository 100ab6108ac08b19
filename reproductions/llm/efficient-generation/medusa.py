"""Medusa: extra heads on a frozen model guess further ahead, and one pass checks a tree of guesses (arXiv:2401.10774).

Symbols: h_t last hidden state at position t (B, d) · head k guesses token t + 1 + k, k = 1 .. K · W1, W2 its matrices ·
tree of the best candidates of each head below the base model's own next token, the root · V characters
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.characters import character_split, texts
from reproductions.lab.digits import batches
from reproductions.lab.seeding import generator
from reproductions.lab.speculative import (
    Decoding,
    Draft,
    NGrams,
    TokenTree,
    character_gpt,
    decode,
    greedy_text,
    held_out_prompts,
    tokens_if_forced,
    tree_pass,
)
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT

LENGTH = 64


@dataclass(frozen=True)
class Settings:
    """Sizes, rates and the rival's order, picked on pilot seed 0."""

    steps: int = 300
    lr: float = 6e-3  # of 3e-3, 6e-3, 1.2e-2, by held-out loss
    head_steps: int = 200
    head_lr: float = 1e-2  # of 1e-3, 3e-3, 1e-2 (the edge), by the heads' held-out loss
    batch: int = 16
    widths: tuple[int, ...] = (3, 2, 2)  # candidates of each head
    order: int = 3  # of 2, 3, 4, by tokens per call
    prompts: int = 40
    prompt_length: int = 16
    new: int = 40


SHORT = Settings(steps=2, head_steps=2, prompts=2, new=4)


class MedusaHead(nn.Module):
    """W2 (h + SiLU(W1 h)) (Section 2.1): with W1 zero and W2 a copy, it begins as the base model's head."""

    def __init__(self, base_head: nn.Linear) -> None:
        super().__init__()
        V, d = base_head.weight.shape
        self.W1, self.W2 = nn.Linear(d, d, bias=False), nn.Linear(d, V, bias=False)
        nn.init.zeros_(self.W1.weight)
        self.W2.load_state_dict(base_head.state_dict())

    def forward(self, h: Tensor) -> Tensor:  # (..., d) -> (..., V)
        return self.W2(h + F.silu(self.W1(h)))


def heads_loss(heads: nn.ModuleList, h: Tensor, text: Tensor) -> Tensor:
    """Sum of the cross-entropies of all heads: states h (B, T, d) of the first T tokens of text (B, T + 1 + K).

    The paper weighs the heads; as they share no parameter, Adam would take the weights out again.
    """
    T = h.shape[1]
    return torch.stack(
        [F.cross_entropy(head(h).flatten(0, 1), text[:, 1 + k :][:, :T].flatten()) for k, head in enumerate(heads, 1)]
    ).sum()


def train_heads(base: TinyGPT, tokens: Tensor, seed: int, s: Settings) -> nn.ModuleList:
    """Medusa-1 (Section 2.2.1): the base is frozen, so its states are computed once."""
    K = len(s.widths)
    text = tokens.unfold(0, LENGTH + 1 + K, 2 * LENGTH)  # (n, T + 1 + K), every other stretch
    with torch.no_grad():
        h = base.hidden(text[:, :LENGTH])  # (n, T, d)
    heads = nn.ModuleList(MedusaHead(base.head) for _ in range(K)).requires_grad_()
    order = batches(len(text), s.batch, s.head_steps, generator(seed, "heads"))
    train(heads, lambda i: heads_loss(heads, h[i], text[i]), order, s.head_lr, steps=s.head_steps, schedule="cosine")
    return heads.requires_grad_(requires_grad=False)


def candidates(heads: nn.ModuleList, h: Tensor, tree: TokenTree) -> Tensor:
    """Nodes (B, N) from states h (B, d): every node of level k - 1 has the same children, the best of head k.

    The heads do not know which candidates of the others they follow (Section 2.1).
    """
    levels = [
        head(h).topk(width).indices.repeat(1, parents)
        for head, width, parents in zip(heads, tree.widths, tree.levels, strict=False)
    ]
    return torch.cat(levels, 1)


def accuracy_ahead(heads: list[Callable[[Tensor], Tensor]], h: Tensor, text: Tensor, k: int) -> list[float]:
    """Share of positions whose true token 1, 2, ... ahead is among the k best of the head for it."""
    T = h.shape[1]
    hits = [
        (head(h).topk(k).indices == text[:, ahead:][:, :T, None]).any(-1).float().mean()
        for ahead, head in enumerate(heads, 1)
    ]
    return [float(share) for share in hits]


def repeated_share(text: Tensor, n: int = 8) -> float:
    """Share of n-grams of texts (B, T) that stood in the same text before: loops are easy to draft."""
    if text.shape[1] < n:
        return 0.0
    grams = [[tuple(gram) for gram in row.unfold(0, n, 1).tolist()] for row in text]
    return 1 - sum(len(set(row)) for row in grams) / sum(map(len, grams))


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train heads on a frozen base; continue held-out prompts with heads and with an n-gram table as drafts."""
    s = settings
    split = character_split(texts("en"), seed, LENGTH)
    base = character_gpt(split, seed, d=64, layers=3, steps=s.steps, lr=s.lr)
    heads = train_heads(base, split.training, seed, s)
    table = NGrams(split.training, s.order)

    K = len(s.widths)
    with torch.no_grad():
        h = base.hidden(split.held_out[:, : -K - 1])
    top1, top3 = (accuracy_ahead([base.head, *heads], h, split.held_out, k) for k in (1, 3))

    base.double(), heads.double()  # so that rounding flips no greedy choice
    prompts = held_out_prompts(split, s.prompts, s.prompt_length)

    def score(tokens: Tensor, lengths: Tensor, nodes: Tensor, tree: TokenTree) -> tuple[Tensor, Tensor]:
        states = tree_pass(base, tokens, lengths, nodes, tree)
        return base.head(states), states

    def decoded(drafter: str, widths: tuple[int, ...]) -> Decoding:
        tree = TokenTree(widths)

        def draft(tokens: Tensor, lengths: Tensor, left: Tensor) -> Draft:
            return table.draft(tokens, lengths, tree) if drafter == "ngram" else Draft(candidates(heads, left, tree))

        return decode(prompts, s.new, tree, draft, score)

    chain = (1,) * K
    done = {
        (arm, used): decoded(arm, widths[:used])
        for arm, widths in {"tree": s.widths, "chain": chain, "ngram": s.widths}.items()
        for used in range(1, K + 1)
    }
    plain = greedy_text(base, prompts, s.new)

    # chains of guesses for text that is given, the root being its middle
    P, line = LENGTH // 2, TokenTree(chain)
    with torch.no_grad():
        before_root = base.hidden(split.held_out[:, : P - 1])[:, -1]
        guesses = {
            "chain": candidates(heads, before_root, line),
            "ngram": table.draft(split.held_out[:, :P], torch.full((len(split.held_out),), P), line).tokens,
        }
    forced = {arm: tokens_if_forced(nodes, split.held_out[:, P : P + K]) for arm, nodes in guesses.items()}
    per_call = {arm: done[arm, K].per_call for arm in ("tree", "chain", "ngram")}
    metrics = {
        "mismatch": float((done["tree", K].text != plain).sum()),
        "tok_medusa": per_call["tree"],
        "tok_ngram": per_call["ngram"],
        "tok_tree": per_call["tree"],
        "tok_chain": per_call["chain"],
        "acc1_h2": top1[1],
        "acc1_h4": top1[3],
        "acc3_h2": top3[1],
    }
    figure: list[dict[str, Any]] = [
        {"panel": "tokens", "arm": arm, "heads": used, "tokens": result.per_call}
        for (arm, used), result in done.items()
    ]
    figure += [
        {"panel": "accuracy", "best": name, "ahead": ahead, "share": share}
        for name, shares in (("top1", top1), ("top3", top3))
        for ahead, share in enumerate(shares, 1)
    ]
    figure += [{"panel": "forced", "arm": arm, "tokens": tokens} for arm, tokens in forced.items()]
    loops = {"written": plain, "held_out": split.held_out[:, : s.new]}
    figure += [{"panel": "loops", "text": name, "share": repeated_share(text)} for name, text in loops.items()]
    return Result(metrics, figure)
