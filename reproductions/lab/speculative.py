"""Speculative decoding: a tree of guesses, one pass of the model that scores them, a walk that keeps what is right."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from reproductions.lab.characters import CharacterSplit, next_token_loss
from reproductions.lab.corpus import windows
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import train
from reproductions.lab.transformer import TinyGPT


@dataclass(frozen=True)
class TokenTree:
    """The shape of a tree of guesses below the last token of a text, which is its root.

    Every node of a level has equally many children. Node 0 is the root; level follows level, and the children of one
    node stand side by side.

    Attributes:
        widths: children per node, level by level: `(3, 1)` has 3 nodes and below each of them one, `(1, 1)` is a chain.
    """

    widths: tuple[int, ...]

    @property
    def depth(self) -> int:
        """Number of levels below the root."""
        return len(self.widths)

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Number of nodes of each level, the root's first."""
        return tuple(accumulate(self.widths, lambda nodes, width: nodes * width, initial=1))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first node of each level, and last the number of all nodes."""
        return (0, *accumulate(self.levels))

    @property
    def size(self) -> int:
        """Number of nodes below the root."""
        return self.starts[-1] - 1

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """The parent of each node; -1 for the root."""
        below = zip(self.widths, self.levels[1:], self.starts[:-1], strict=False)
        return (-1, *(start + number // width for width, nodes, start in below for number in range(nodes)))

    @cached_property
    def lineage(self) -> Tensor:
        """Boolean (1 + N, 1 + N), true where the column is the row's node or an ancestor of it."""
        related = torch.eye(1 + self.size, dtype=torch.bool)
        for node, parent in enumerate(self.parents[1:], start=1):
            related[node] |= related[parent]
        return related

    def path(self, node: int) -> list[int]:
        """The nodes from below the root down to `node`."""
        return [ancestor for ancestor in self.lineage[node].nonzero()[:, 0].tolist() if ancestor]


class Draft(NamedTuple):
    """Guesses for one round: `tokens` (B, N), and where they were drawn at random, `q`, from which law.

    `q` (B, number of nodes that have children, vocab) holds the law of the children of each node.
    """

    tokens: Tensor
    q: Tensor | None = None


Drafter = Callable[[Tensor, Tensor, Tensor], Draft]
"""Guesses what follows texts (B, L) with lengths (B,), given what the last pass left for it (B, ...)."""

Scorer = Callable[[Tensor, Tensor, Tensor, TokenTree], tuple[Tensor, Tensor]]
"""One pass of the model over texts (B, L) with lengths (B,) and the nodes (B, N) of a tree below their last tokens.

It gives the logits (B, 1 + N, vocab) at the root and at all nodes, and something (B, 1 + N, ...), of which the entry at
the last node that was kept is left for the drafter.
"""

Choice = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""From logits (B, vocab) at a node, the guesses (B, k) below it and their law (B, vocab) to a token (B,)."""


def most_likely(logits: Tensor, children: Tensor, q: Tensor | None) -> Tensor:  # noqa: ARG001
    """The choice (B,) of greedy decoding: it does not look at the guesses."""
    return logits.argmax(-1)


def tree_pass(model: TinyGPT, tokens: Tensor, lengths: Tensor, nodes: Tensor, tree: TokenTree) -> Tensor:
    """Tree attention: states below the head (B, 1 + N, d) of the root and of all nodes, in one pass.

    A node sees the text, its ancestors and itself; its position is its depth below the root. What stands before it, for
    a model with `token_shift`, is its parent.

    Args:
        model: with learned positions.
        tokens: texts (B, L).
        lengths: tokens of each text that count (B,); the last of them is the root.
        nodes: tokens of the nodes (B, N).
        tree: with N nodes.

    Raises:
        ValueError: for a model without learned positions.
    """
    if model.position_embedding is None:
        raise ValueError("tree_pass needs a model with learned positions")
    (B, L), N = tokens.shape, nodes.shape[1]
    rows = torch.arange(B)
    depths = tree.lineage.sum(1) - 1
    positions = torch.cat([torch.arange(L).expand(B, L), lengths[:, None] - 1 + depths[1:]], 1)  # (B, L + N)
    mask = torch.ones(B, L + N, L + N, dtype=torch.bool).tril()
    mask[:, L:, :L] = (torch.arange(L) < lengths[:, None])[:, None]
    mask[:, L:, L:] = tree.lineage[1:, 1:]
    x = torch.cat([model.embed(tokens), model.token_embedding(nodes)], 1)
    if model.shift is not None:
        family = torch.cat([tokens[rows, lengths - 1][:, None], nodes], 1)  # root and nodes
        parents = family[:, list(tree.parents[1:])]
        x = x + torch.nn.functional.pad(model.shift(model.token_embedding(parents)), (0, 0, L, 0))
    x = x + model.position_embedding.weight[positions]
    for block in model.blocks:
        x = block(x, mask[:, None])
    states = model.ln_out(x)
    return torch.cat([states[rows, lengths - 1][:, None], states[:, L:]], 1)


def chain_inputs(tokens: Tensor, lengths: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """For a chain of k guesses no tree is needed: write them behind the text.

    Returns:
        texts with their guesses (B, L + k), and the places of root and guesses in them (B, 1 + k).
    """
    places = lengths[:, None] - 1 + torch.arange(1 + nodes.shape[1])
    text = torch.nn.functional.pad(tokens, (0, nodes.shape[1]))
    return text.scatter(1, places[:, 1:], nodes), places


def at(values: Tensor, places: Tensor) -> Tensor:
    """Entries of `values` (B, L, ...) at `places` (B, n): (B, n, ...)."""
    return values[torch.arange(len(values))[:, None], places]


def walk(
    tree: TokenTree, draft: Draft, logits: Tensor, choose: Choice, *, bonus: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """From the root down: emit the token that is chosen at a node, and go on from its first child with that token.

    Where a whole path of guesses is right, its last node gives one more token, the bonus.

    Args:
        tree: with N nodes.
        draft: the guesses.
        logits: of the model at the root and at all nodes (B, 1 + N, vocab).
        choose: the rule.
        bonus: false where the model does not score the last guess, so that nothing follows it.

    Returns:
        emitted tokens (B, depth + 1), without a bonus (B, depth), of which the first `count` (B,) hold, and the last
        node (B,) that was reached.
    """
    rows = torch.arange(len(logits))
    place = torch.zeros_like(rows)  # of the node in its level
    count, last = torch.zeros_like(rows), torch.zeros_like(rows)
    alive = torch.ones_like(rows, dtype=torch.bool)
    emitted = []
    for level, width in enumerate((*tree.widths, 0) if bonus else tree.widths):
        node = tree.starts[level] + place
        below = place[:, None] * width + torch.arange(width)  # (B, width)
        children = at(draft.tokens, tree.starts[level + 1] - 1 + below)
        law = None if draft.q is None or not width else draft.q[rows, node]
        token = choose(logits[rows, node], children, law)
        emitted.append(token)
        count, last = count + alive.long(), torch.where(alive, node, last)
        right = children == token[:, None]
        alive = alive & right.any(1)
        if width:
            place = at(below, right.long().argmax(1)[:, None])[:, 0]
    return torch.stack(emitted, 1), count, last


@dataclass(frozen=True)
class Decoding:
    """Text (B, new) that was written, tokens that were emitted for it, and passes of the model over one text."""

    text: Tensor
    emitted: int
    calls: int

    @property
    def per_call(self) -> float:
        """Tokens per call, from 1 to the tree's depth + 1."""
        return self.emitted / self.calls


@torch.no_grad()
def decode(
    prompts: Tensor,
    new: int,
    tree: TokenTree,
    draft: Drafter,
    score: Scorer,
    choose: Choice = most_likely,
    *,
    bonus: bool = True,
) -> Decoding:
    """Continue prompts (B, P) by at least `new` tokens, each at its own pace; `bonus` as in `walk`.

    Reading the prompt is not counted. What the last round of a text emits beyond `new` counts as emitted: the number of
    tokens per call would be too low otherwise.
    """
    B, P = prompts.shape
    text = torch.nn.functional.pad(prompts, (0, new + tree.depth))
    lengths = torch.full((B,), P)
    _, states = score(prompts[:, :-1], lengths - 1, prompts[:, :0], TokenTree(()))
    left = states[:, 0]
    calls = 0
    while len(active := (lengths < P + new).nonzero()[:, 0]):
        n = lengths[active]
        tokens = text[active, : int(n.max())]
        guesses = draft(tokens, n, left[active])
        logits, states = score(tokens, n, guesses.tokens, tree)
        emitted, count, last = walk(tree, guesses, logits, choose, bonus=bonus)
        step = torch.arange(emitted.shape[1])
        holds, places = step < count[:, None], n[:, None] + step
        text[active[:, None].expand_as(places)[holds], places[holds]] = emitted[holds]
        lengths[active] += count
        left[active] = states[torch.arange(len(active)), last]
        calls += len(active)
    return Decoding(text[:, P : P + new], int(lengths.sum()) - B * P, calls)


@torch.no_grad()
def greedy_text(forward: Callable[[Tensor], Tensor], prompts: Tensor, new: int) -> Tensor:
    """Plain greedy decoding (B, new) of prompts (B, P), one token a pass; `forward` takes (B, T) to (B, T, vocab)."""
    text = prompts
    for _ in range(new):
        text = torch.cat([text, forward(text)[:, -1:].argmax(-1)], 1)
    return text[:, prompts.shape[1] :]


def tokens_if_forced(guesses: Tensor, truth: Tensor) -> float:
    """Tokens per call of a chain of guesses (B, k), were the text not the model's own but `truth` (B, k).

    Greedy text falls into loops, which are easy to guess; given text does not.
    """
    return 1 + float((guesses == truth).long().cumprod(1).sum(1).float().mean())


class NGrams:
    """A draft for nothing: what followed the last `order` - 1 tokens most often in the training text.

    Where that gives too few guesses, shorter contexts fill up.
    """

    def __init__(self, tokens: Tensor, order: int) -> None:
        self.order = order
        self._followers: dict[tuple[int, ...], list[int]] = defaultdict(list)
        text = tokens.tolist()
        for length in range(order):
            grams = Counter(zip(*(text[start:] for start in range(length + 1)), strict=False))
            for (*context, token), _ in sorted(grams.items(), key=lambda gram: (-gram[1], gram[0])):
                self._followers[tuple(context)].append(token)

    def best(self, context: Sequence[int], k: int) -> list[int]:
        """The k most frequent followers of a context, the best first."""
        found: dict[int, None] = {}
        for length in range(min(self.order - 1, len(context)), -1, -1):
            for token in self._followers.get(tuple(context[len(context) - length :]), ()):
                if len(found) == k:
                    return list(found)
                found[token] = None
        return list(found)

    def draft(self, tokens: Tensor, lengths: Tensor, tree: TokenTree) -> Draft:
        """Guesses (B, N) for texts `tokens` (B, L) with `lengths` (B,)."""
        drafted = []
        for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True):
            texts = [row[max(0, n - self.order + 1) : n]]  # of each node of a level
            nodes: list[int] = []
            for width in tree.widths:
                texts = [[*text, token] for text in texts for token in self.best(text, width)]
                nodes += [text[-1] for text in texts]
            drafted.append(nodes)
        return Draft(torch.tensor(drafted))


def character_gpt(
    split: CharacterSplit,
    seed: int,
    *,
    d: int,
    layers: int,
    steps: int,
    lr: float,
    heads: int = 4,
    length: int = 64,
    batch: int = 12,
    stream: str = "",
) -> TinyGPT:
    """A language model of characters with `token_shift`, trained on windows of the training text and frozen."""
    size = split.alphabet.size
    model = init_model(lambda: TinyGPT(size, d, layers, heads, length, token_shift=True), seed, f"init{stream}")
    batches = windows(split.training, length, batch, steps, generator(seed, f"batches{stream}"))
    train(model, lambda rows: next_token_loss(model, rows), batches, lr, steps=steps, warmup=20, schedule="cosine")
    return model.requires_grad_(requires_grad=False)


def held_out_prompts(split: CharacterSplit, number: int, length: int) -> Tensor:
    """The first `length` characters of rows spread evenly over the held-out text: (number, length)."""
    rows = torch.linspace(0, len(split.held_out) - 1, number).long()
    return split.held_out[rows, :length]
