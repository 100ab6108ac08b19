"""The code hash: it follows what a reproduction reaches, and nothing else."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_kb.codehash import CodeError, CodeHasher, defined_names
from tests.roadmap import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REPRODUCTION = '''\
"""A reproduction."""

from __future__ import annotations

from dataclasses import dataclass

from reproductions.lab import Result
from reproductions.lab.models import Model, traced
from reproductions.lab.training import train as fit


@dataclass(frozen=True)
class Settings:
    """Sizes."""

    steps: int = 150  # the number of steps


SHORT = Settings(steps=2)


@traced
def helper(x: float) -> float:
    """Twice."""
    return 2 * x


def run(seed: int, settings: Settings = Settings()) -> Result:
    """Measure."""
    return Result({"m": fit(Model(), helper(seed), settings.steps)})
'''

LAB = {
    "__init__.py": "from reproductions.lab.result import Result, Unused\n\n__all__ = ['Result', 'Unused']\n",
    "result.py": '"""Results."""\n\n\nclass Result:\n    """It."""\n\n    size = 1\n\n\nclass Unused:\n    size = 1\n',
    "models.py": (
        "import math\nfrom math import sin as wave, cos as other\n\nfrom reproductions.lab.result import Unused\n\n\n"
        "class Base:\n    depth = 2\n\n\nclass Model(Base):\n    def f(self):\n        return wave(DEPTH)\n\n\n"
        "DEPTH = 3\nWIDTH = 4\n\n\ndef traced(f):\n    return f\n\n\ndef unused():\n    return WIDTH, other, Unused, math\n"
    ),
    "training.py": (
        "RATE, MOMENTUM = 0.1, 0.9\nTABLE = {}\nTABLE['a'] = 1\n\n\ndef register(f):\n    return f\n\n\n"
        "def step(rate=RATE):\n    return rate\n\n\n@register\ndef train(model, x, steps):\n    return [step() for _ in range(steps)], TABLE\n\n\n"
        "def unused():\n    return 1\n"
    ),
    "untouched.py": "X = 1\n",
}


class Tree:
    """A project of one reproduction and its lab."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lab = root / "reproductions" / "lab"
        self.file = root / "reproductions" / "track" / "section" / "slug.py"
        self.lab.mkdir(parents=True)
        self.file.parent.mkdir(parents=True)
        self.file.write_text(REPRODUCTION, encoding="utf-8")
        for name, text in LAB.items():
            (self.lab / name).write_text(text, encoding="utf-8")

    def hash(self) -> str:
        return CodeHasher(self.root).hash(self.file)

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.file if name == "slug.py" else self.lab / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_hash_says_how_it_was_made(tree: Tree) -> None:
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", tree.hash())
    assert tree.hash() == tree.hash()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("slug.py", '"""A reproduction."""', '"""Another text of the module."""'),
        ("slug.py", '"""A reproduction."""\n', ""),
        ("slug.py", '"""Measure."""', '"""Count."""'),
        ("slug.py", '    """Twice."""\n', ""),
        ("slug.py", "  # the number of steps", ""),
        ("slug.py", "150  #", "150\n    # or more:"),
        ("slug.py", "return 2 * x", "return (\n        2\n        * x\n    )"),
        ("slug.py", '{"m": fit', "{'m': fit"),
        ("slug.py", "steps: int = 150", "steps: int = 1_50"),
        ("result.py", '    """It."""\n\n', ""),
        ("result.py", "class Unused:\n    size = 1", "class Unused:\n    size = 2"),
        ("models.py", "WIDTH = 4", "WIDTH = 5"),
        ("models.py", "return WIDTH", "return 1 + WIDTH"),
        ("models.py", "cos as other", "tan as other"),
        ("models.py", "import math\n", "import cmath as math\n"),
        ("models.py", "def traced(f):", "def another():\n    pass\n\n\ndef traced(f):"),
        ("training.py", "def unused():\n    return 1", "def unused():\n    return 2"),
        ("untouched.py", "X = 1", "X = 2"),
        ("untouched.py", "X = 1", "this is no Python"),
        ("__init__.py", ", Unused\n", "\n"),
    ],
)
def test_what_computes_the_same_has_the_same_hash(tree: Tree, name: str, old: str, new: str) -> None:
    before = tree.hash()
    tree.edit(name, old, new)
    assert tree.hash() == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        pytest.param("slug.py", "2 * x", "3 * x", id="the reproduction"),
        pytest.param("slug.py", "steps: int = 150", "steps: int = 151", id="a setting"),
        pytest.param("slug.py", "SHORT = Settings(steps=2)", "SHORT = Settings(steps=3)", id="the short form"),
        pytest.param("slug.py", "2 * x", "2.0 * x", id="a number's type"),
        pytest.param("slug.py", "@traced\n", "", id="a decorator"),
        pytest.param("slug.py", '"m"', '"n"', id="a metric's name"),
        pytest.param(
            "slug.py",
            "from reproductions.lab.training import train as fit",
            "from math import dist as fit",
            id="import",
        ),
        pytest.param("training.py", "for _ in range(steps)", "for _ in range(2 * steps)", id="an imported function"),
        pytest.param("training.py", "    return rate", "    return 2 * rate", id="a function that it calls"),
        pytest.param("training.py", "0.1, 0.9", "0.2, 0.9", id="a constant in a default value"),
        pytest.param("training.py", "TABLE['a'] = 1", "TABLE['a'] = 2", id="a change to a constant"),
        pytest.param(
            "training.py", "def register(f):\n    return f", "def register(f):\n    return None", id="decorator in lab"
        ),
        pytest.param("training.py", "TABLE = {}", "TABLE = {}\nTABLE.clear()", id="what runs on import"),
        pytest.param("models.py", "DEPTH = 3", "DEPTH = 4", id="a constant in a method"),
        pytest.param("models.py", "depth = 2", "depth = 3", id="a base class"),
        pytest.param("models.py", "sin as wave", "tan as wave", id="a function from outside"),
        pytest.param(
            "models.py", "def traced(f):\n    return f", "def traced(f):\n    return None", id="an imported decorator"
        ),
        pytest.param("result.py", "size = 1", "size = 2", id="a definition that lab/__init__ hands on"),
        pytest.param("__init__.py", "import Result", "import Unused as Result", id="what lab/__init__ hands on"),
    ],
)
def test_what_may_compute_something_else_has_another_hash(tree: Tree, name: str, old: str, new: str) -> None:
    before = tree.hash()
    tree.edit(name, old, new)
    assert tree.hash() != before


def test_a_definition_that_moves_within_lab_has_another_hash(tree: Tree) -> None:
    before = tree.hash()
    (tree.lab / "result.py").rename(tree.lab / "results.py")
    for name in ("__init__.py", "models.py"):
        tree.edit(name, "lab.result", "lab.results")
    assert tree.hash() != before


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("slug.py", "import reproductions.lab.models", "imports a lab module whole"),
        ("slug.py", "import math, reproductions.lab as lab", "imports a lab module whole"),
        ("slug.py", "from reproductions.lab.models import *", "imports * from reproductions.lab.models"),
        ("slug.py", "from reproductions.lab.nothing import x", "which does not exist"),
        ("slug.py", "from reproductions import lab", "import from reproductions.lab only"),
        ("slug.py", "from reproductions.track.section.other import run", "import from reproductions.lab only"),
        ("slug.py", "from reproductions.labs import x", "import from reproductions.lab only"),
        ("slug.py", "from ..lab import Result", "by its full name"),
        ("slug.py", "from . import other", "by its full name"),
        ("slug.py", "def g(): from reproductions.lab.models import Base", "inside a block"),
        ("slug.py", "if seed: import reproductions.lab.models", "inside a block"),
        ("slug.py", "def f(:", "is not valid Python"),
        (
            "slug.py",
            "from reproductions.lab.models import missing\nmissing()",
            "imports missing, which reproductions/lab/models.py does not define",
        ),
        (
            "slug.py",
            "from reproductions.lab import models\nmodels.Base()",
            "imports models, which reproductions/lab/__init__.py does not define",
        ),
        ("models.py", "from .result import Result", "by its full name"),
        ("models.py", "from reproductions.track.section.slug import run", "import from reproductions.lab only"),
        ("models.py", "if DEPTH: from reproductions.lab.result import Result", "inside a block"),
        ("training.py", "x = (", "is not valid Python"),
    ],
)
def test_code_that_cannot_be_followed_is_refused_with_its_place(tree: Tree, name: str, line: str, message: str) -> None:
    path = tree.file if name == "slug.py" else tree.lab / name
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}{line}\n", encoding="utf-8")
    with pytest.raises(CodeError) as error:
        tree.hash()
    assert message in error.value.message
    assert error.value.file == path
    assert error.value.line == text.count("\n") + 1


@pytest.mark.parametrize(
    "source", ["x = " + "(" * 500 + "1" + ")" * 500, "x = " + "-" * 100_000 + "1", "x = 1\0", f"x = {'a.' * 3000}b"]
)
def test_code_beyond_the_parser_is_refused(tree: Tree, source: str) -> None:
    tree.file.write_text(source, encoding="utf-8")
    with pytest.raises(CodeError):
        tree.hash()


def test_imports_that_go_round_end(tree: Tree) -> None:
    (tree.lab / "a.py").write_text("from reproductions.lab.b import f\n\ndef g():\n    return f()\n", encoding="utf-8")
    (tree.lab / "b.py").write_text("from reproductions.lab.a import g\n\ndef f():\n    return g()\n", encoding="utf-8")
    tree.file.write_text("from reproductions.lab.a import g\nprint(g())\n", encoding="utf-8")
    assert tree.hash().startswith("sha256:")
    (tree.lab / "b.py").write_text("from reproductions.lab.a import f\n", encoding="utf-8")
    with pytest.raises(CodeError, match="in a circle"):
        tree.hash()


def test_a_missing_file_is_an_os_error(tree: Tree) -> None:
    tree.file.unlink()
    with pytest.raises(FileNotFoundError):
        tree.hash()


# Any code

names = st.sampled_from(["a", "b", "c", "train", "Model"])
expressions = st.recursive(
    names
    | st.integers(0, 9).map(str)
    | st.sampled_from(["0.5", "'x'", "[1, 2]", "{'k': a}", "f'{a:.2f}'", "x[1:]", "None"]),
    lambda inner: st.builds("({} + {})".format, inner, inner) | st.builds("f({}, k={})".format, inner, inner),
    max_leaves=5,
)
statements = st.one_of(
    st.builds("{} = {}".format, names, expressions),
    st.builds("def {}(x, *args, y={}):\n    return {}".format, names, expressions, expressions),
    st.builds("class {}(object):\n    k: int = {}".format, names, expressions),
    st.builds("@{}\ndef {}():\n    if {}:\n        yield 1\n    else:\n        pass".format, names, names, expressions),
    st.builds("for i in {}:\n    print(lambda: {})".format, expressions, expressions),
)
programs = st.lists(statements, min_size=1, max_size=4).map("\n\n".join)


@pytest.fixture(scope="module")
def hash_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The hash of a reproduction with this source."""
    tree = Tree(tmp_path_factory.mktemp("any"))

    def hash_of(source: str) -> str:
        tree.file.write_text(source, encoding="utf-8")
        return tree.hash()

    return hash_of


@settings(deadline=None, max_examples=100)
@given(program=programs)
def test_formatting_never_counts(hash_of: Callable[[str], str], program: str) -> None:
    formatted = ast.unparse(ast.parse(program))
    commented = "\n".join(
        f"{line}  # remark" if line and not line.endswith("\\") else line for line in program.split("\n")
    )
    documented = f'"""A docstring."""\n\n{program}'
    assert len({hash_of(text) for text in (program, formatted, commented, documented)}) == 1


@settings(deadline=None, max_examples=100)
@given(first=programs, second=programs)
def test_programs_that_parse_differently_hash_differently(
    hash_of: Callable[[str], str], first: str, second: str
) -> None:
    same = ast.dump(ast.parse(first)) == ast.dump(ast.parse(second))
    assert (hash_of(first) == hash_of(second)) == same


# Names


def test_the_names_of_a_file_are_what_notes_may_explain() -> None:
    source = (
        "import math\nfrom x import y\nA = 1\nB, (C, D) = 1, (2, 3)\nE: int = 1\n"
        "def f():\n    inner = 1\n    def g(): ...\nasync def h(): ...\n"
        "class K:\n    attribute: int = 1\n    def method(self): self.x = 1\n    class Inner:\n        deep = 1\n"
    )
    assert defined_names(ast.parse(source)) == {*"ABCDEfhK", "K.attribute", "K.method", "K.Inner"}


def test_every_real_reproduction_can_be_followed() -> None:
    hasher = CodeHasher(ROOT)
    files = [f for f in (ROOT / "reproductions").rglob("*.py") if len(f.relative_to(ROOT).parts) == 4]
    hashes = {hasher.hash(file) for file in files}
    assert len(hashes) == len(files) > 0
