"""A small roadmap, wholly fabricated, as the corpus of the tests.

Two tracks, three sections, six slugs of which two are planned. `averages` has a record made by the real
code, `dartboard` a reproduction that was never counted, the others none.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from genai_kb.cli import main
from genai_kb.measure import code_hash, make_record, save_record, tasks_for
from genai_kb.metadata import Compared, Metadata, text_hashes, write_metadata
from genai_kb.records import COUNTED_SEEDS
from genai_kb.runner import Limits, run_tasks
from genai_kb.validation import validate

if TYPE_CHECKING:
    from click.testing import Result

    from genai_kb.catalog import Catalog, Item
    from genai_kb.problems import Problem

ROOT = Path(__file__).parents[1]
FACTS = "roadmap/estimation/first-steps/averages.json"
RECORD = "reproductions/estimation/first-steps/averages.json"

ROADMAP = """\
tags:
  averages: {en: Averages, es: Promedios}
  simulation: {en: Simulation, es: Simulación}
  history: {en: History, es: Historia}
tracks:
- id: estimation
  title: {en: Estimation, es: Estimación}
  sections:
  - id: first-steps
    title: {en: First steps, es: Primeros pasos}
    entries: [averages, medians]
  - id: areas
    title: {en: Areas, es: Áreas}
    entries: [dartboard, quasi-random]
- id: reading
  title: {en: Reading, es: Lecturas}
  sections:
  - id: overviews
    title: {en: Overviews, es: Panoramas}
    entries: [guess-book, dice-box]
"""

TRACK_TEXT = """\
introduction:
  en: How to guess a number from draws.
  es: Cómo estimar un número a partir de muestras.
"""

SECTION_TEXT = """\
introduction: {en: Means and medians., es: Medias y medianas.}
questions:
- ask: {en: "What is $n$?", es: "¿Qué es $n$?"}
  answer: {en: The number of draws., es: El número de muestras.}
further_reading:
- title: {en: A book on draws, es: Un libro sobre muestras}
  url: https://example.org/draws
  note: {en: Its second chapter., es: El segundo capítulo.}
"""

GLOSSARY = """\
terms:
- id: draw
  en: draw
  es: muestra
  forms: {en: [draws], es: [muestras]}
  avoid: [sorteo, extracción al azar]
  definition:
    en: One value that a *random* variable takes, as $x_i$.
    es: Un valor que toma una variable *aleatoria*, como $x_i$.
  entry: averages
- id: mean
  en: mean
  es: media
  avoid: [medianía]
  definition: {en: The sum by the number., es: La suma entre el número.}
  entry: medians
- id: nandu
  en: rhea
  es: ñandú
  definition: {en: A bird., es: Un ave.}
- id: number
  en: number
  es: número
  definition: {en: What one counts with., es: Aquello con lo que se cuenta.}
"""

AVERAGES = """\
kind: concept
short_title: {en: Averages, es: Promedios}
url: https://example.org/averages
tags: [averages]
summary:
  en: The mean of many draws comes close to the expected value. It does so slowly.
  es: La media de muchas muestras se acerca al valor esperado. Lo hace con lentitud.
idea:
  en: |-
    With $n$ draws $x_i$ the estimate is

    $$\\bar{x} = \\frac{1}{n} \\sum_{i} x_i$$

    and its error falls as $1 / \\sqrt{n}$.
  es: |-
    Con $n$ muestras $x_i$ la estimación es

    $$\\bar{x} = \\frac{1}{n} \\sum_{i} x_i$$

    y su error disminuye como $1 / \\sqrt{n}$.
scale:
  en: Uniform draws, up to 400 of them. Heavy tails are not tested.
  es: Muestras uniformes, hasta 400. No se prueban colas pesadas.
metrics:
  error_few:
    en: Absolute error of the mean of 4 draws. At least 0.
    es: Error absoluto de la media de 4 muestras. Vale al menos 0.
  error_many:
    en: The same error with 400 draws. At least 0.
    es: El mismo error con 400 muestras. Vale al menos 0.
  gain:
    en: Error of the mean less that of the median, both of 400 draws.
    es: Error de la media menos el de la mediana, ambas de 400 muestras.
claims:
- id: more-is-better
  statement:
    en: More draws give a smaller error.
    es: Más muestras dan un error menor.
  place: {en: Section 2, es: Sección 2}
  seen: paper
  test:
    en: The error with 4 and with 400 draws.
    es: El error con 4 y con 400 muestras.
  metrics: [error_few, error_many]
  holds_if: max(error_many) <= 0.1 and mean(error_few - error_many) > 0.001
  amendments:
  - date: "2026-01-31"
    holds_if: max(error_many) <= 0.01
    metrics: [error_many]
    test:
      en: The error with 400 draws.
      es: El error con 400 muestras.
    why:
      en: The first condition said nothing of few draws.
      es: La primera condición no decía nada de las muestras pocas.
- id: median-wins
  statement:
    en: The median has half the error.
    es: La mediana tiene la mitad del error.
  place: {en: "Section 3, page 7", es: "Sección 3, página 7"}
  seen: memory
  test:
    en: Both errors on the same draws.
    es: Ambos errores en las mismas muestras.
  metrics: [gain]
  holds_if: mean(gain) >= 0.5
  discussion:
    en: For uniform draws the median is the worse estimate.
    es: Con muestras uniformes la mediana es peor estimación.
figure:
  panels:
  - id: errors
    kind: line
    x:
      column: draws
      title: {en: Number of draws, es: Número de muestras}
      scale: log
    y:
      column: error
      title: {en: Absolute error, es: Error absoluto}
    series:
      column: method
      names:
        mean: {en: Mean, es: Media}
        median: {en: Median, es: Mediana}
  - id: tiles
    kind: grid
    title: {en: The first draws, es: Las primeras muestras}
    x:
      column: number
      title: {en: Number, es: Número}
  caption:
    en: Error against the number of draws.
    es: Error según el número de muestras.
  alt:
    en: Line chart of the error of two estimates.
    es: Gráfica de líneas del error de dos estimaciones.
walkthrough:
- name: Settings
  note:
    en: The sizes of the experiment.
    es: Los tamaños del experimento.
- name: errors
  source: {en: Equation 1, es: Ecuación 1}
  note:
    en: The errors of both estimates.
    es: Los errores de ambas estimaciones.
- name: run
  note:
    en: All of it, from the seed on.
    es: Todo, a partir de la semilla.
questions:
- ask:
    en: What does the error become with 4 times the draws?
    es: ¿En qué queda el error con 4 veces las muestras?
  answer:
    en: About half, since $\\sqrt{4} = 2$.
    es: En cerca de la mitad, pues $\\sqrt{4} = 2$.
"""

DARTBOARD = """\
kind: paper
short_title: {en: Dartboard, es: Diana}
arxiv: "2101.00001"
tags: [simulation, averages]
prerequisites: [averages]
summary:
  en: Throw darts at a square and count those in the circle.
  es: Se lanzan dardos a un cuadrado y se cuentan los del círculo.
idea:
  en: The share of hits tends to $\\pi / 4$.
  es: La fracción de aciertos tiende a $\\pi / 4$.
scale:
  en: Some hundreds of darts.
  es: Unos cientos de dardos.
metrics:
  pi:
    en: Four times the share of hits.
    es: Cuatro veces la fracción de aciertos.
claims:
- id: finds-pi
  statement:
    en: The game finds $\\pi$.
    es: El juego encuentra $\\pi$.
  place: {en: Abstract, es: Resumen}
  seen: abstract
  test:
    en: The estimate from 500 darts.
    es: La estimación con 500 dardos.
  metrics: [pi]
  holds_if: min(pi) >= 2.5 and max(pi) <= 3.8
questions:
- ask: {en: "Why four times?", es: "¿Por qué cuatro veces?"}
  answer: {en: The square has area 4., es: El cuadrado tiene área 4.}
"""

GUESS_BOOK = """\
kind: textbook
short_title: {en: The book of guesses, es: El libro de las conjeturas}
url: https://example.org/book
tags: [history]
prerequisites: [averages, quasi-random]
summary:
  en: All that was known of guessing.
  es: Todo lo que se sabía de las conjeturas.
idea:
  en: A guess is a `number` with a *reason*; see [the site](https://example.org/guess?a=1&b=2).
  es: Una conjetura es un `número` con un *motivo*; véase [el sitio](https://example.org/guess?a=1&b=2).
scale:
  en: Nothing was measured yet.
  es: Todavía no se midió nada.
metrics:
  share:
    en: Share of good guesses, from 0 to 1.
    es: Fracción de conjeturas buenas, de 0 a 1.
claims:
- id: guesses-are-good
  statement:
    en: Most guesses are good.
    es: La mayoría de las conjeturas son buenas.
  place: {en: Chapter 1, es: Capítulo 1}
  seen: secondary
  test:
    en: A thousand guesses.
    es: Mil conjeturas.
  metrics: [share]
  holds_if: mean(share) > 0.5
questions:
- ask: {en: "Who guessed first?", es: "¿Quién conjeturó primero?"}
  answer: {en: Nobody knows., es: Nadie lo sabe.}
"""

DICE_BOX = """\
kind: tool
short_title: {en: Dice box, es: Caja de dados}
arxiv: "cs/0112017"
tags: [simulation, history]
prerequisites: [dartboard]
summary:
  en: A box with dice.
  es: Una caja con dados.
idea:
  en: Shake it.
  es: Hay que agitarla.
scale:
  en: One box.
  es: Una caja.
metrics:
  eyes:
    en: Mean number of eyes, from 1 to 6.
    es: Número medio de puntos, de 1 a 6.
claims:
- id: dice-are-fair
  statement:
    en: The dice are fair.
    es: Los dados son justos.
  place: {en: Label, es: Etiqueta}
  seen: memory
  test:
    en: A hundred throws.
    es: Cien lanzamientos.
  metrics: [eyes]
  holds_if: mean(eyes) >= 3 and mean(eyes) <= 4
questions:
- ask: {en: "How many dice?", es: "¿Cuántos dados?"}
  answer: {en: Two., es: Dos.}
"""

METADATA: dict[str, dict[str, Any]] = {
    "estimation/first-steps/averages": {
        "bibliography": {
            "id": "averages",
            "type": "webpage",
            "title": "On Averages & 100% of Their Uses",
            "author": [{"literal": "The Averaging Society"}],
            "issued": {"date-parts": [[1999]]},
            "URL": "https://example.org/averages",
        },
        "verified": "partial",
        "source": "example.org",
    },
    "estimation/areas/dartboard": {
        "bibliography": {
            "id": "dartboard",
            "type": "paper-conference",
            "title": "Throwing Darts at Circles",
            "author": [{"family": "Núñez", "given": "Łucía"}, {"family": "Ødegård", "given": "Per"}],
            "issued": {"date-parts": [[2021, 1, 4]]},
            "container-title": "Proceedings of Nowhere",
            "DOI": "10.0000/darts_1",
            "URL": "https://arxiv.org/abs/2101.00001",
            "custom": {"arxiv": "2101.00001", "code": "https://example.org/darts", "license": "MIT"},
        },
        "verified": "high",
        "source": "arxiv.org",
        "fetched": "2026-11-01",
    },
    "reading/overviews/guess-book": {
        "bibliography": {
            "id": "guess-book",
            "type": "book",
            "title": "The Book of Guesses",
            "author": [{"family": "Zoë", "given": "Ann"}],
        },
        "verified": "memory",
        "source": "memory",
    },
    "reading/overviews/dice-box": {
        "bibliography": {
            "id": "dice-box",
            "type": "software",
            "title": "Dice Box",
            "author": [{"family": "Würfel", "given": "Max"}],
            "issued": {"date-parts": [[2001, 12]]},
            "URL": "https://arxiv.org/abs/cs/0112017",
            "custom": {"arxiv": "cs/0112017"},
        },
        "verified": "high",
        "source": "arxiv.org",
    },
}

LAB_DRAWS = '''\
"""Draws and what becomes of them."""

from __future__ import annotations

import random
import statistics as stats

LOW, HIGH = 0.0, 1.0
EXPECTED = (LOW + HIGH) / 2


def uniform(seed: int, n: int) -> list[float]:
    """Draw n numbers."""
    generator = random.Random(seed)
    return [generator.uniform(LOW, HIGH) for _ in range(n)]


def median(values: list[float]) -> float:
    """The one in the middle."""
    return stats.median(values)


def unused(values: list[float]) -> float:
    """No reproduction calls this."""
    return max(values)
'''

AVERAGES_CODE = '''\
"""Averages: what more draws are good for.

Symbols: n number of draws
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from reproductions.lab import Result
from reproductions.lab.draws import EXPECTED, median, uniform


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment."""

    draws: tuple[int, ...] = (4, 20, 100, 400)


SHORT = Settings(draws=(4, 5))


def errors(values: list[float]) -> dict[str, float]:
    """Absolute error of both estimates (Equation 1)."""
    return {"mean": abs(fmean(values) - EXPECTED), "median": abs(median(values) - EXPECTED)}


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Estimate the mean of uniform draws."""
    values = uniform(seed, max(settings.draws))
    by_draws = {n: errors(values[:n]) for n in settings.draws}
    first, last = by_draws[settings.draws[0]], by_draws[settings.draws[-1]]
    metrics = {
        "error_few": first["mean"],
        "error_many": last["mean"],
        "gain": last["mean"] - last["median"],
    }
    rows = [
        {"panel": "errors", "draws": n, "method": method, "error": error}
        for n, found in by_draws.items()
        for method, error in found.items()
    ]
    tile = [[round(255 * values[2 * i + j]) for j in range(2)] for i in range(2)]
    rows.append({"panel": "tiles", "number": 1, "image": tile})
    return Result(metrics, rows)
'''

DARTBOARD_CODE = '''\
"""Dartboard: the area of a circle by throwing darts (arXiv:2101.00001)."""

from __future__ import annotations

from dataclasses import dataclass

from reproductions.lab import Result
from reproductions.lab.draws import uniform


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment."""

    darts: int = 500


SHORT = Settings(darts=5)


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Count the darts within the circle."""
    x, y = uniform(seed, settings.darts), uniform(seed + 1000, settings.darts)
    hits = sum(a * a + b * b <= 1 for a, b in zip(x, y, strict=True))
    return Result({"pi": 4 * hits / settings.darts})
'''

FILES = {
    "roadmap/roadmap.yaml": ROADMAP,
    "roadmap/estimation/_track.yaml": TRACK_TEXT,
    "roadmap/glossary/basics.yaml": GLOSSARY,
    "roadmap/estimation/first-steps/_section.yaml": SECTION_TEXT,
    "roadmap/estimation/first-steps/averages.yaml": AVERAGES,
    "roadmap/estimation/areas/dartboard.yaml": DARTBOARD,
    "roadmap/reading/overviews/guess-book.yaml": GUESS_BOOK,
    "roadmap/reading/overviews/dice-box.yaml": DICE_BOX,
    "reproductions/__init__.py": "",
    "reproductions/lab/__init__.py": (ROOT / "reproductions/lab/__init__.py").read_text(encoding="utf-8"),
    "reproductions/lab/result.py": (ROOT / "reproductions/lab/result.py").read_text(encoding="utf-8"),
    "reproductions/lab/draws.py": LAB_DRAWS,
    "reproductions/estimation/first-steps/averages.py": AVERAGES_CODE,
    "reproductions/estimation/areas/dartboard.py": DARTBOARD_CODE,
}


@dataclass(frozen=True)
class Project:
    """A project on disk, with what the tests do to it."""

    root: Path

    def path(self, name: str) -> Path:
        """A file by its path, or by its name where only one has it."""
        exact = self.root / name
        return exact if exact.exists() else next(self.root.rglob(name))

    def read(self, name: str) -> str:
        """The text of a file."""
        return self.path(name).read_text(encoding="utf-8")

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file by its path from the root, making its folders."""
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    def replace(self, name: str, old: str, new: str) -> None:
        """Replace a part of a file that occurs in it; only its first occurrence."""
        text = self.read(name)
        assert old in text, f"{old!r} is not in {name}"
        self.path(name).write_text(text.replace(old, new, 1), encoding="utf-8")

    def line_of(self, name: str, part: str) -> int:
        """Number of the first line of a file that holds a part."""
        return next(number for number, line in enumerate(self.read(name).splitlines(), 1) if part in line)

    def problems(self) -> list[Problem]:
        """What validation finds."""
        return validate(self.root).problems

    def catalog(self) -> Catalog:
        """The catalogue of what is sound."""
        catalog = validate(self.root).catalog
        assert catalog is not None
        return catalog

    def item(self, slug: str) -> Item:
        """One entry."""
        return self.catalog().items[slug]

    def compared(self) -> None:
        """Say of all entries and chapters that both languages say the same."""
        catalog = self.catalog()
        for name, text in catalog.texts.items():
            compared = Compared.model_validate({"translated": text_hashes(text)})
            write_metadata(self.root / "roadmap" / f"{name}.json", compared)
        for slug, item in catalog.items.items():
            metadata = item.metadata.model_copy(update={"translated": text_hashes(item.entry)})
            write_metadata(self.root / "roadmap" / item.place.folder / f"{slug}.json", metadata)

    def measure(self, slug: str) -> None:
        """Make the record of an entry as `run --record` does, but without git."""
        catalog = self.catalog()
        item = catalog.items[slug]
        outcomes = run_tasks(tasks_for(catalog, item, (*COUNTED_SEEDS, COUNTED_SEEDS[0])), Limits(seconds=60)).outcomes
        save_record(catalog, make_record(catalog, item, outcomes, "0" * 40, code_hash(catalog, item)))

    def commit(self) -> str:
        """Commit everything, in a repository of its own; return the commit's hash."""
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
        if not (self.root / ".git").exists():
            self.git("init", "--quiet")
        self.git("add", "--all")
        self.git(*identity, "commit", "--quiet", "--allow-empty", "--message", "State")
        return self.git("rev-parse", "HEAD").strip()

    def git(self, *arguments: str) -> str:
        """Run git in the project."""
        return subprocess.run(
            ["git", *arguments], cwd=self.root, check=True, capture_output=True, text=True, encoding="utf-8"
        ).stdout

    def cli(self, *arguments: str) -> Result:
        """Run genai-kb in this process; an exception other than its exit fails the test."""
        result = CliRunner().invoke(main, ["--root", str(self.root), *arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def snapshot(self) -> dict[str, bytes]:
        """The content of all files but git's own."""
        return {
            file.relative_to(self.root).as_posix(): file.read_bytes()
            for file in sorted(self.root.rglob("*"))
            if file.is_file() and ".git" not in file.parts
        }


def build(root: Path) -> Project:
    """Write the whole project, its records included."""
    project = Project(root)
    for name, text in FILES.items():
        project.write(name, text)
    for name, facts in METADATA.items():
        write_metadata(root / "roadmap" / f"{name}.json", Metadata.model_validate(facts))
    project.compared()
    project.measure("averages")
    return project
