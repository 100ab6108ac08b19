"""CoPE: positions that count only the tokens that matter to the query (arXiv:2405.18719).

Symbols: q, k queries and keys (B, h, T, d_k) · g_ij gate of key j for query i, 0 to 1 · p_ij position of j seen from i,
the sum of the gates from j to i · e[p] embedding of position p, learned at p = 0 .. P - 1 · d_k width of a head
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.lab import Result
from reproductions.lab.attention import MultiHeadAttention, causal_mask
from reproductions.lab.copying import selective_copy
from reproductions.lab.rope import use_rotary
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.training import accuracy, train
from reproductions.lab.transformer import TinyGPT, init_weights

ARMS = ("cope", "rope", "absolute")


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; each rate has the best mean accuracy with 10 blanks on pilot seeds 0-2, of 1e-3, 3e-3, 1e-2."""

    d: int = 48
    heads: int = 2
    layers: int = 2
    positions: int = 24  # P, the size of CoPE's table
    letters: int = 10  # in a string
    alphabet: int = 8
    blanks: int = 10  # in training
    test_blanks: tuple[int, ...] = (5, 7, 10, 14, 20)  # the first is "dense", the last "sparse"
    tests: int = 500  # strings for each number of blanks
    batch: int = 32
    steps: int = 400
    warmup: int = 30
    lr: dict[str, float] = field(default_factory=lambda: {"cope": 3e-3, "rope": 3e-3, "absolute": 3e-3})
    exact_length: int = 40


SHORT = Settings(steps=2, tests=4)


def positions(gates: Tensor) -> Tensor:
    """p_ij: the sum of g_il over l = j .. i, for gates (..., T, T) that are 0 where a key comes after its query."""
    T = gates.shape[-1]
    return gates @ torch.ones(T, T, dtype=gates.dtype).tril()  # faster than a cumulative sum from the right


def position_scores(q: Tensor, p: Tensor, e: Tensor) -> Tensor:
    """q_i^T e[p_ij] (B, h, T, T), interpolated between whole positions; p is cut off at the last row of e (P, d_k)."""
    p = p.clamp(max=len(e) - 1)
    below, above = p.floor().long(), p.ceil().long()
    whole = q @ e.T  # (B, h, T, P): products come first, so that no embedding is made for each pair of tokens
    share = p - below  # carries the gradient to the gates
    return (1 - share) * whole.gather(-1, below) + share * whole.gather(-1, above)


def cope_scores(q: Tensor, k: Tensor, e: Tensor, gate: Callable[[Tensor], Tensor] = torch.sigmoid) -> Tensor:
    """Scores of every query and key before the softmax: (B, h, T, T), -inf where the key comes after the query."""
    content = q @ k.transpose(2, 3)  # (B, h, T, T)
    visible = causal_mask(q.shape[2])
    p = positions(gate(content) * visible)
    scores = content / q.shape[3] ** 0.5 + position_scores(q, p, e)
    return scores.masked_fill(~visible, -torch.inf)


class CoPEAttention(MultiHeadAttention):
    """Causal attention whose heads share the table e of positions and have no other sense of order."""

    def __init__(self, d: int, heads: int, P: int) -> None:
        super().__init__(d, heads, causal=True)
        self.e = nn.Parameter(torch.zeros(P, d // heads))

    def forward(self, x: Tensor, _mask: Tensor | None = None) -> Tensor:  # (B, T, d)
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        mixed = cope_scores(q, k, self.e).softmax(-1) @ v  # (B, h, T, d_k)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def gates(self, x: Tensor) -> Tensor:
        """g_ij of every head: (B, h, T, T); only those with j <= i are used."""
        return (self._heads(self.q_proj(x)) @ self._heads(self.k_proj(x)).transpose(2, 3)).sigmoid()


def build(arm: str, s: Settings) -> TinyGPT:
    """A decoder; the arms differ in nothing but how they see order."""
    context = max(s.test_blanks) + 2 * s.letters
    kind = "learned" if arm == "absolute" else "none"
    model = TinyGPT(s.alphabet + 2, s.d, s.layers, s.heads, context, positions=kind)
    for block in model.blocks:
        block.mlp = nn.Sequential(nn.Linear(s.d, 2 * s.d), nn.GELU(), nn.Linear(2 * s.d, s.d))
        if arm == "cope":
            block.attn = CoPEAttention(s.d, s.heads, s.positions)
    init_weights(model, s.d)
    return use_rotary(model) if arm == "rope" else model


def strings(n: int, blanks: int, s: Settings, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Letters among blanks at random places, a separator, all letters but the last; and the letters (n, letters).

    The model is to say the next letter at each of the last `letters` tokens, of which the first is the separator.
    """
    tokens, letters = selective_copy(n, s.letters + blanks, s.letters, s.alphabet, gen)
    tokens[:, -s.letters + 1 :] = letters[:, :-1]  # teacher forcing: what it should have said so far
    return tokens, letters


def gate_means(model: TinyGPT, tokens: Tensor, s: Settings) -> Tensor:
    """Mean gate on letters and on blanks of the input, for the queries that write: (layers * heads, 2)."""
    x, means = model.embed(tokens), []
    is_blank = tokens[:, : -s.letters] == s.alphabet  # (n, T_in)
    with torch.no_grad():
        for block in model.blocks:
            gates = block.attn.gates(block.ln1(x))[:, :, -s.letters :, : -s.letters]  # (n, h, letters, T_in)
            by_key = gates.mean(2).transpose(0, 1)  # (h, n, T_in)
            means.append(torch.stack([by_key[:, ~is_blank].mean(1), by_key[:, is_blank].mean(1)], 1))
            x = block(x)
    return torch.cat(means)


def reduction_error(seed: int, s: Settings) -> float:
    """With all gates at 1, CoPE against a table that is looked up by i - j + 1, pair by pair, in float64."""
    gen, T, d_k = generator(seed, "exact"), s.exact_length, s.d // s.heads
    q, k, e = (torch.randn(*shape, d_k, generator=gen, dtype=torch.float64) for shape in ((T,), (T,), (s.positions,)))
    forced = cope_scores(q[None, None], k[None, None], e, gate=torch.ones_like)[0, 0]
    relative = [
        [float(q[i] @ k[j] / d_k**0.5 + q[i] @ e[min(i - j + 1, s.positions - 1)]) for j in range(i + 1)]
        for i in range(T)
    ]
    return max(float((forced[i, : i + 1] - forced.new_tensor(row)).abs().max()) for i, row in enumerate(relative))


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train three decoders to copy letters from among blanks; test with fewer and more blanks; look into the gates."""
    s = settings
    tests = {blanks: strings(s.tests, blanks, s, generator(seed, f"test {blanks}")) for blanks in s.test_blanks}

    def fit(arm: str) -> TinyGPT:
        model, gen = init_model(lambda: build(arm, s), seed), generator(seed, "batches")

        def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(model(batch[0])[:, -s.letters :].flatten(0, 1), batch[1].flatten())

        batches = (strings(s.batch, s.blanks, s, gen) for _ in range(s.steps))
        train(model, loss, batches, s.lr[arm], steps=s.steps, warmup=s.warmup)
        return model

    def score(model: TinyGPT, tokens: Tensor, letters: Tensor) -> float:
        with torch.no_grad():
            return accuracy(model(tokens)[:, -s.letters :], letters)

    models = {arm: fit(arm) for arm in ARMS}
    acc = {arm: {blanks: score(model, *test) for blanks, test in tests.items()} for arm, model in models.items()}
    dense, sparse = s.test_blanks[0], s.test_blanks[-1]
    ood = {arm: (acc[arm][dense] + acc[arm][sparse]) / 2 for arm in ARMS}

    again = generator(seed, "batches")
    seen = torch.cat([strings(s.batch, s.blanks, s, again)[0] for _ in range(10)])  # the first ten training batches
    picked = int((gate_means(models["cope"], seen, s) @ torch.tensor([1.0, -1.0])).argmax())
    before = init_model(lambda: build("cope", s), seed)
    gates = {
        when: gate_means(model, tests[s.blanks][0], s)[picked].tolist()
        for when, model in (("before", before), ("after", models["cope"]))
    }
    metrics = {
        "cope_ood": ood["cope"],
        "best_other_ood": max(ood["rope"], ood["absolute"]),
        "baselines_id": min(acc["rope"][s.blanks], acc["absolute"][s.blanks]),
        "reduction_error": reduction_error(seed, s),
        "gate_contrast": gates["after"][0] - gates["after"][1],
    }
    rows: list[dict[str, Any]] = [
        {"panel": "copying", "arm": arm, "blanks": blanks, "accuracy": value}
        for arm in ARMS
        for blanks, value in acc[arm].items()
    ]
    rows += [
        {"panel": "gates", "when": when, "token": token, "gate": value}
        for when, means in gates.items()
        for token, value in zip(("letter", "blank"), means, strict=True)
    ]
    return Result(metrics, rows)
