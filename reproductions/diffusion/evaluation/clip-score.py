"""CLIPScore: a caption judged by the picture, in the embedding space of CLIP (arXiv:2104.08718).

Symbols: v unit embedding of an image (n, d), c of the caption under test, r of a reference caption; w = 2.5 ·
a scene (3,) numbers shape, colour and place; a rater's grade is the count of right attributes plus noise ·
BLEU-2 geometric mean of the shares of words and word pairs that references have too · ROUGE-L longest common
subsequence of words
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import kendalltau
from sklearn.metrics import roc_auc_score
from torch import Tensor

from reproductions.lab import Result
from reproductions.lab.contrastive import TinyCLIP, fit_clip
from reproductions.lab.seeding import generator, init_model
from reproductions.lab.shapes import COLOURS, PLACES, SHAPES, SIDE, draw

# per language: names of shapes, colours and places, in the order of SHAPES, COLOURS and PLACES
PLAIN = {
    "en": ("square circle triangle cross ring", "red green blue yellow purple white",
           "top_left top_right bottom_left bottom_right"),
    "es": ("cuadrado círculo triángulo signo_más marco", "rojo verde azul amarillo morado blanco",
           "superior_izquierda superior_derecha inferior_izquierda inferior_derecha"),
}  # fmt: skip
SYNONYMS = {
    "en": ("box disc wedge plus frame", "crimson emerald indigo amber violet ivory",
           "upper_left upper_right lower_left lower_right"),
    "es": ("caja disco cuña cruz borde", "carmesí esmeralda añil ámbar violeta marfil",
           "arriba_a_la_izquierda arriba_a_la_derecha abajo_a_la_izquierda abajo_a_la_derecha"),
}  # fmt: skip
PLAIN_TEMPLATES = {
    "en": ("a {1} {0} at the {2}", "picture of a {1} {0} in the {2} corner", "the {0} is {1} and sits at the {2}",
           "at the {2} there is a {1} {0}"),
    "es": ("un {0} {1} en la esquina {2}", "imagen de un {0} de color {1} en la esquina {2}",
           "el {0} es {1} y está en la esquina {2}", "en la esquina {2} hay un {0} {1}"),
}  # fmt: skip
OTHER_TEMPLATES = {"en": ("{1} {0} {2}", "{2} {0} in {1}"), "es": ("{0} {1} {2}", "{2} {0} en {1}")}
NAMES = tuple(f"Name{i}" for i in range(20))
KINDS = {"correct": 0, "synonyms": 0, "one_wrong": 1, "two_wrong": 2, "unrelated": 3}  # number of wrong attributes
MEASURES = ("bleu", "rouge", "clip", "refclip")
SIZES = torch.tensor([len(SHAPES), len(COLOURS), len(PLACES)])


@dataclass(frozen=True)
class Settings:
    """Sizes and the rate, chosen by the contrastive loss of unseen pairs on pilot seeds 0 and 1."""

    train: int = 3000
    test: int = 300
    d: int = 24
    batch: int = 128
    steps: int = 600
    lr: float = 8e-3  # of 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2
    rater: float = 0.5  # standard deviation of a rater's noise
    reach: float = 0.1  # how far a pixel may move when the score is attacked
    attack_steps: int = 40
    noises: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)  # of the test images; the first is that of training, and judged
    shown: int = 6


SHORT = Settings(train=40, test=12, d=8, batch=16, steps=2, attack_steps=2, noises=(0.05,), shown=2)


def clip_score(c: Tensor, v: Tensor, w: float = 2.5) -> Tensor:
    """The cosine of unit vectors (n, d), at least 0, times w: (n,) (Section 3)."""
    return w * (c * v).sum(-1).clamp(min=0)


def ref_clip_score(c: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """Harmonic mean of CLIPScore and the best cosine, at least 0, with references r (n, k, d): (n,) (Section 3)."""
    image, reference = clip_score(c, v), (r @ c[..., None]).squeeze(-1).amax(-1).clamp(min=0)
    return 2 * image * reference / (image + reference).clamp(min=1e-12)


def bleu_2(caption: list[str], references: list[list[str]]) -> float:
    """BLEU with words and pairs; a count of 1e-15 keeps captions without a known pair in the order of their words."""
    product = 1.0
    for n in (1, 2):
        own, *known = (
            Counter(zip(*(text[start:] for start in range(n)), strict=False)) for text in (caption, *references)
        )
        most = {gram: max(counts[gram] for counts in known) for gram in own}
        matches = sum(min(count, most[gram]) for gram, count in own.items())
        product *= (matches + 1e-15) / max(own.total(), 1)
    closest = min((abs(len(text) - len(caption)), len(text)) for text in references)[1]
    return math.sqrt(product) * min(1.0, math.exp(1 - closest / len(caption)))


def rouge_l(caption: list[str], references: list[list[str]], beta: float = 1.2) -> float:
    """The best F-measure over references, by the longest common subsequence; beta as in the tools for captions."""
    best = 0.0
    for text in references:
        lengths = [0] * (len(text) + 1)  # of the subsequence common to the words so far and each start of the reference
        for word in caption:
            before = 0
            for j, other in enumerate(text, start=1):
                before, lengths[j] = lengths[j], before + 1 if word == other else max(lengths[j], lengths[j - 1])
        precision, recall = lengths[-1] / len(caption), lengths[-1] / len(text)
        best = max(best, (1 + beta**2) * precision * recall / max(recall + beta**2 * precision, 1e-12))
    return best


def phrase(scene: list[int], language: str, template: int, *, synonyms: bool = False) -> str:
    """A scene in words: one of four templates in the references' style, or one of two with synonyms."""
    names, templates = (SYNONYMS, OTHER_TEMPLATES) if synonyms else (PLAIN, PLAIN_TEMPLATES)
    words = [part.split()[i].replace("_", " ") for part, i in zip(names[language], scene, strict=True)]
    return templates[language][template].format(*words)


def every_phrase(scene: list[int]) -> list[str]:
    """All twelve captions of a scene, in both languages and styles."""
    return [phrase(scene, lang, t) for lang in PLAIN for t in range(4)] + [
        phrase(scene, lang, t, synonyms=True) for lang in PLAIN for t in range(2)
    ]


SCENES = torch.cartesian_prod(*(torch.arange(int(size)) for size in SIZES))  # (120, 3), in the order of shapes.draw
WORDS = sorted({word for scene in SCENES.tolist() for text in every_phrase(scene) for word in text.split()} | {"by"})
TOKEN = {word: token for token, word in enumerate((*WORDS, *NAMES))}


def encode(captions: list[str], length: int = 16) -> Tensor:
    """Words to tokens (n, length), padded with the number of words."""
    rows = [[TOKEN[word] for word in text.split()] for text in captions]
    return torch.tensor([row + [len(TOKEN)] * (length - len(row)) for row in rows])


def altered(scenes: Tensor, wrong: int, gen: torch.Generator) -> Tensor:
    """Scenes (n, 3) with another value for `wrong` of the three attributes, drawn for each scene."""
    hit = torch.rand(len(scenes), 3, generator=gen).argsort(1) < wrong
    other = 1 + (torch.rand(len(scenes), 3, generator=gen) * (SIZES - 1)).long()  # 1 .. size - 1: never the same value
    return torch.where(hit, (scenes + other) % SIZES, scenes)


def candidates(scenes: Tensor, language: str, gen: torch.Generator) -> tuple[dict[str, list[str]], list[list[str]]]:
    """Five captions of each scene, by kind, and three references; they use the templates that the captions do not."""
    order = torch.rand(len(scenes), 4, generator=gen).argsort(1).tolist()
    captions = {
        kind: [
            phrase(scene, language, own % 2 if kind == "synonyms" else own, synonyms=kind == "synonyms")
            for scene, (own, *_) in zip(altered(scenes, wrong, gen).tolist(), order, strict=True)
        ]
        for kind, wrong in KINDS.items()
    }
    pairs = zip(scenes.tolist(), order, strict=True)
    return captions, [[phrase(scene, language, t) for t in others] for scene, (_, *others) in pairs]


def trained_clip(settings: Settings, seed: int) -> TinyCLIP:
    """A CLIP that has read every wording of both languages, but no names (Radford et al., figure 3)."""
    numbers = torch.randint(len(SCENES), (settings.train,), generator=generator(seed, "train"))
    images = draw(numbers, generator(seed, "train images"))
    tokens = torch.stack([encode(every_phrase(scene)) for scene in SCENES.tolist()])  # (120, 12, T)
    wording = generator(seed, "wording")

    def texts(index: Tensor) -> Tensor:
        return tokens[numbers[index], torch.randint(tokens.shape[1], (len(index),), generator=wording)]

    clip = init_model(lambda: TinyCLIP(3 * SIDE**2, len(TOKEN), settings.d), seed)
    fit_clip(clip, images, texts, seed, steps=settings.steps, batch=settings.batch, lr=settings.lr)
    return clip.requires_grad_(requires_grad=False)


def scores(clip: TinyCLIP, v: Tensor, captions: list[str], references: list[list[str]]) -> dict[str, Tensor]:
    """All four measures (n,) of a caption for each image embedding v (n, d)."""
    c = clip.embed_texts(encode(captions))
    r = torch.stack([clip.embed_texts(encode(texts)) for texts in references])  # (n, 3, d)
    words = [
        (text.split(), [other.split() for other in texts]) for text, texts in zip(captions, references, strict=True)
    ]
    return {
        "bleu": torch.tensor([bleu_2(*pair) for pair in words]),
        "rouge": torch.tensor([rouge_l(*pair) for pair in words]),
        "clip": clip_score(c, v),
        "refclip": ref_clip_score(c, v, r),
    }


def attacked(clip: TinyCLIP, images: Tensor, captions: list[str], reach: float, steps: int) -> Tensor:
    """Images (n, 3, 16, 16) whose pixels moved by at most `reach` to raise the score of a wrong caption."""
    c, moved = clip.embed_texts(encode(captions)), images.clone()
    for _ in range(steps):
        moved.requires_grad_()
        (slope,) = torch.autograd.grad((c * clip.embed_images(moved)).sum(), moved)
        moved = (moved.detach() + 2 * reach / steps * slope.sign()).clamp(images - reach, images + reach).clamp(0, 1)
    return moved


def tau_c(values: Tensor, grades: Tensor) -> float:
    """Kendall's rank correlation for tables that are not square; ties do not count as agreement."""
    return float(kendalltau(values.flatten(), grades.flatten(), variant="c").statistic)


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Train a CLIP, then let four measures grade captions of other images."""
    clip, n = trained_clip(settings, seed), settings.test
    numbers = torch.randint(len(SCENES), (n,), generator=generator(seed, "test"))
    pictures = {noise: draw(numbers, generator(seed, "test images"), noise) for noise in settings.noises}
    images, scenes = pictures[settings.noises[0]], SCENES[numbers]
    v = clip.embed_images(images)
    rater = settings.rater * torch.randn(len(KINDS), n, generator=generator(seed, "rater"))
    grades = 3 - torch.tensor(list(KINDS.values()))[:, None] + rater  # (5, n)
    rows: list[dict[str, Any]] = []
    for language in ("es", "en"):  # only the English one is judged
        captions, references = candidates(scenes, language, generator(seed, "candidates"))
        measured = {kind: scores(clip, v, texts, references) for kind, texts in captions.items()}
        agreement = {name: tau_c(torch.stack([measured[k][name] for k in KINDS]), grades) for name in MEASURES}
        rows += [{"panel": "tau", "measure": k, "score": f"tau_{language}", "value": x} for k, x in agreement.items()]
    for noise, seen in pictures.items():
        less = {kind: scores(clip, clip.embed_images(seen), texts, references) for kind, texts in captions.items()}
        for name in ("clip", "refclip"):
            value = tau_c(torch.stack([less[kind][name] for kind in KINDS]), grades)
            rows.append({"panel": "noise", "measure": name, "noise": noise, "tau": value})

    right = torch.randint(len(NAMES), (n,), generator=generator(seed, "names"))
    wrong = (right + torch.randint(1, len(NAMES), (n,), generator=generator(seed, "wrong names"))) % len(NAMES)
    told = [
        [f"{text} by {NAMES[i]}" for text, i in zip(captions["correct"], who, strict=True)] for who in (right, wrong)
    ]
    known = [[f"{text} by {NAMES[i]}" for text in texts] for texts, i in zip(references, right, strict=True)]
    named = [scores(clip, v, texts, known) for texts in told]
    truth = [1] * n + [0] * n
    auc = {name: float(roc_auc_score(truth, torch.cat([part[name] for part in named]))) for name in MEASURES}
    rows += [{"panel": "tau", "measure": name, "score": "names", "value": value} for name, value in auc.items()]

    lies = captions["unrelated"]
    moved = attacked(clip, images, lies, settings.reach, settings.attack_steps)
    measured["attacked"] = scores(clip, clip.embed_images(moved), lies, references)
    for kind, values in measured.items():
        rows += [{"panel": "kinds", "measure": m, "kind": kind, "score": float(values[m].mean())} for m in MEASURES]
    for state, shown in (("before", images), ("after", moved)):
        levels = (shown[: settings.shown] * 255).round().int().permute(0, 2, 3, 1).tolist()
        rows += [{"panel": "pictures", "state": state, "position": i, "image": x} for i, x in enumerate(levels)]
    metrics = {
        "tau_gain": agreement["clip"] - max(agreement["bleu"], agreement["rouge"]),
        "context_gap": auc["rouge"] - auc["clip"],
        "ref_gain": agreement["refclip"] - agreement["clip"],
    }
    return Result(metrics, rows)
