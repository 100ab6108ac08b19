"""SpecInfer: a tree of guesses, verified in one pass without changing the law of the text (arXiv:2305.09781).

Symbols: p law of the next token in the target, the large model · q the same in the draft model · tree of N nodes below
the last token, the root · MSS multi-step speculative sampling · B texts side by side · V characters
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reproductions.lab import Result
from reproductions.lab.characters import character_split, next_token_loss, texts
from reproductions.lab.seeding import generator
from reproductions.lab.speculative import (
    Choice,
    Decoding,
    Draft,
    TokenTree,
    character_gpt,
    decode,
    greedy_text,
    held_out_prompts,
    most_likely,
    tree_pass,
)
from reproductions.lab.transformer import TinyGPT


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; the rates have the least held-out loss on pilot seed 0."""

    steps: int = 300
    draft_steps: int = 200
    lr: float = 6e-3  # of 3e-3, 6e-3, 1.2e-2
    draft_lr: float = 3e-2  # of 1e-2, 3e-2, 6e-2
    depth: int = 4
    widths: tuple[int, ...] = (1, 2, 3)  # children at the first two levels; below them, one
    prompts: int = 40
    greedy_prompts: int = 20
    prompt_length: int = 16
    new: int = 40
    contexts: int = 5
    draws: int = 40_000  # at each context


SHORT = Settings(steps=2, draft_steps=2, prompts=2, greedy_prompts=2, new=3, draws=50)


def tree_of(width: int, depth: int) -> TokenTree:
    """`width` children at the first two levels, one at the others; width 1 is a chain."""
    return TokenTree((width, width, *(1,) * (depth - 2)))


def draft_tree(
    model: TinyGPT, tree: TokenTree, tokens: Tensor, lengths: Tensor, gen: torch.Generator | None = None
) -> Draft:
    """Grow the tree level by level (Section 3): children drawn from q, or without a generator the likeliest ones.

    Drawn children are independent, and one may occur twice: the case that the proof covers.
    """
    nodes, laws = tokens[:, :0], []
    for level, width in enumerate(tree.widths):
        grown = TokenTree(tree.widths[:level])
        leaves = tree_pass(model, tokens, lengths, nodes, grown)[:, grown.starts[level] :]
        q = model.head(leaves).softmax(-1)  # (B, leaves, V)
        if gen is None:
            children = q.topk(width).indices
        else:
            children = q.flatten(0, 1).multinomial(width, replacement=True, generator=gen)
        nodes = torch.cat([nodes, children.view(len(tokens), -1)], 1)
        laws.append(q)
    return Draft(nodes, torch.cat(laws, 1))


def multi_step(p: Tensor, children: Tensor, q: Tensor | None, gen: torch.Generator, *, correct: bool = True) -> Tensor:
    """MSS at one node (Section 4): p, q (B, V) and children (B, k), drawn from q, to the token that is emitted (B,).

    A child x is accepted with probability min(1, p(x) / q(x)). If it is rejected, p becomes the normalised positive
    part of p - q; `correct=False` leaves this out, and the law of what is emitted is no longer p.
    """
    rows, token = torch.arange(len(p)), torch.full((len(p),), -1)
    for x in children.T:
        assert q is not None
        accepted = torch.rand(len(p), generator=gen, dtype=p.dtype) < p[rows, x] / q[rows, x]
        token = torch.where((token < 0) & accepted, x, token)
        if correct:
            rest = (p - q).clamp(min=0)
            mass = rest.sum(1, keepdim=True)
            p = torch.where(mass > 0, rest / mass, p)  # no mass: p = q, and x was accepted
    return torch.where(token < 0, p.multinomial(1, generator=gen)[:, 0], token)


def naive(p: Tensor, gen: torch.Generator) -> Tensor:
    """Naive sampling: draw from p (B, V) and see afterwards whether the tree has it."""
    return p.multinomial(1, generator=gen)[:, 0]


def tree_error(model: TinyGPT, tree: TokenTree, tokens: Tensor, nodes: Tensor) -> float:
    """Tree attention (Section 4) against an ordinary pass over the path to each node, as logits."""
    lengths = torch.full((len(tokens),), tokens.shape[1])
    logits = model.head(tree_pass(model, tokens, lengths, nodes, tree))
    alone = [
        model(torch.cat([tokens, nodes[:, [step - 1 for step in tree.path(node)]]], 1))[:, -1]
        for node in range(1 + tree.size)
    ]
    return float((logits - torch.stack(alone, 1)).abs().max())


def total_variation(drawn: Tensor, p: Tensor) -> float:
    """Between the frequencies of drawn tokens (n,) and the law p (V,): 0 to 1."""
    return float((drawn.bincount(minlength=len(p)) / len(drawn) - p).abs().sum() / 2)


def law_errors(p: Tensor, q: Tensor, children: int, draws: int, gen: torch.Generator) -> dict[str, float]:
    """Distances from p (V,) of what MSS emits, of direct draws and of a wrong rule."""
    ps, qs = p.expand(draws, -1), q.expand(draws, -1)
    drawn = q.multinomial(draws * children, replacement=True, generator=gen).view(draws, children)
    emitted = {
        "tv_mss": multi_step(ps, drawn, qs, gen),
        "tv_direct": p.multinomial(draws, replacement=True, generator=gen),
        "tv_wrong": multi_step(ps, drawn, qs, gen, correct=False),
    }
    return {name: total_variation(tokens, p) for name, tokens in emitted.items()}


@torch.no_grad()
def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train target and draft on the same text; compare passes, greedy text, laws and tokens per call of the target."""
    s = settings
    split = character_split(texts("en"), seed, 64)
    with torch.enable_grad():
        target = character_gpt(split, seed, d=64, layers=3, steps=s.steps, lr=s.lr)
        small = character_gpt(split, seed, d=24, layers=1, steps=s.draft_steps, lr=s.draft_lr, stream="draft")
    figure: list[dict[str, Any]] = [
        {"panel": "loss", "model": name, "loss": float(next_token_loss(model, split.held_out))}
        for name, model in (("target", target), ("draft", small))
    ]
    prompts, few = (held_out_prompts(split, number, s.prompt_length) for number in (s.prompts, s.greedy_prompts))
    wide = s.widths[-1]

    def continued(start: Tensor, width: int, choose: Choice, draws: torch.Generator | None) -> Decoding:
        def draft(tokens: Tensor, lengths: Tensor, _left: Tensor) -> Draft:
            return draft_tree(small, tree_of(width, s.depth), tokens, lengths, draws)

        def score(tokens: Tensor, lengths: Tensor, nodes: Tensor, tree: TokenTree) -> tuple[Tensor, Tensor]:
            states = tree_pass(target, tokens, lengths, nodes, tree)
            return target.head(states), states

        return decode(start, s.new, tree_of(width, s.depth), draft, score, choose)

    def sampled(rule: str, width: int) -> float:
        gen, draws = generator(seed, "choice"), generator(seed, "draft")
        rules: dict[str, Choice] = {
            "mss": lambda logits, children, law: multi_step(logits.softmax(-1), children, law, gen),
            "naive": lambda logits, _children, _law: naive(logits.softmax(-1), gen),
            "naive_likeliest": lambda logits, _children, _law: naive(logits.softmax(-1), gen),
        }
        return continued(prompts, width, rules[rule], None if rule == "naive_likeliest" else draws).per_call

    # tokens per call under sampling at temperature 1
    mss = {width: sampled("mss", width) for width in s.widths}
    rivals = {rule: sampled(rule, wide) for rule in ("naive", "naive_likeliest")}
    metrics = {"tok_tree": mss[wide], "tok_chain": mss[1], "tok_naive": rivals["naive"]}

    # what must be equal is compared in float64, where rounding flips no choice
    target.double()
    small.double()
    greedy = {width: continued(few, width, most_likely, None) for width in s.widths}
    metrics["greedy_mismatch"] = float((greedy[wide].text != greedy_text(target, few, s.new)).sum())
    guesses = draft_tree(
        small, tree_of(wide, s.depth), few, torch.full((len(few),), s.prompt_length), generator(seed, "tree")
    )
    metrics["tree_err"] = tree_error(target, tree_of(wide, s.depth), few, guesses.tokens)

    # laws of the next token, where the target is undecided
    text = held_out_prompts(split, s.prompts, 64)
    p, q = (model(text).softmax(-1).flatten(0, 1) for model in (target, small))
    undecided = (torch.special.entr(p).sum(1) > 1).nonzero()[:, 0]
    contexts = undecided[torch.linspace(0, len(undecided) - 1, s.contexts).long()].tolist()
    gen = generator(seed, "laws")
    errors = [law_errors(p[context], q[context], wide, s.draws, gen) for context in contexts]
    metrics |= {name: sum(error[name] for error in errors) / len(errors) for name in errors[0]}

    for width in s.widths:
        nodes = 1 + tree_of(width, s.depth).size
        figure += [
            {"panel": "tokens", "rule": "mss", "width": width, "tokens": mss[width]},
            {"panel": "tokens", "rule": "greedy", "width": width, "tokens": greedy[width].per_call},
            {"panel": "cost", "what": "target", "width": width, "cost": nodes / mss[width]},
            {"panel": "cost", "what": "draft", "width": width, "cost": s.depth / mss[width]},
        ]
    bars = {"mss": mss[wide], **rivals, "chain": mss[1]}
    figure += [{"panel": "rules", "rule": rule, "tokens": tokens} for rule, tokens in bars.items()]
    return Result(metrics, figure)
