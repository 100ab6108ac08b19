"""The lint of reproductions: what an experiment does not need is named at its place; what it needs passes."""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from genai_kb.lint import lint_file
from tests.roadmap import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def lint(folder: Path, source: str) -> list[tuple[int, int, str]]:
    file = folder / "x.py"
    file.write_text(dedent(source), encoding="utf-8")
    return [(problem.line, problem.column, problem.message) for problem in lint_file(file, folder)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import subprocess", "imports `subprocess`, which starts other programs"),
        ("import os.path", "imports `os`, which reaches the operating system"),
        ("from os import system", "imports `os`, which reaches the operating system"),
        ("import socket as s", "imports `socket`, which reaches the network"),
        ("from urllib.request import urlopen", "imports `urllib`, which reaches the network"),
        ("import pickle", "imports `pickle`, which can run code hidden in data"),
        ("from concurrent.futures import ThreadPoolExecutor", "imports `concurrent`, which starts other programs"),
        ("import ctypes", "imports `ctypes`, which loads native code"),
        ("import importlib", "imports `importlib`, which runs text as code"),
        ("import time", "imports `time`, which reads the clock"),
        ("import pandas", "imports `pandas`, which reproductions do without; they import from PIL, "),
        ("import torch.multiprocessing as mp", "imports `torch.multiprocessing`, which starts other programs"),
        ("from torch import hub", "imports `torch.hub`, which reaches the network"),
        ("import torch\ntorch.hub.load('a', 'b')", "`torch.hub` reaches the network"),
        ("import torch as t\nt.load('x.pt')", "`torch.load` can run code hidden in data"),
        ("from torch import load", "`torch.load` can run code hidden in data"),
        ("import numpy as np\nnp.load('x.npy', allow_pickle=True)", "`allow_pickle` can run code hidden in data"),
        ("from sklearn.datasets import fetch_openml", "`sklearn.datasets.fetch_openml` reaches the network"),
        (
            "from sklearn import datasets as d\nd.fetch_openml('x')",
            "`sklearn.datasets.fetch_openml` reaches the network",
        ),
        ("eval('1')", "`eval` runs text as code"),
        ("run = exec", "`exec` runs text as code"),
        ("__import__('os')", "`__import__` runs text as code"),
        ("globals()['x'] = 1", "`globals` changes names behind the reader's back"),
        ("().__class__.__subclasses__()", "`__subclasses__` reaches into the interpreter"),
        ("getattr(print, '__globals__')", "`__globals__` reaches into the interpreter"),
        ("__builtins__", "`__builtins__` reaches into the interpreter"),
        ("open('x', 'w')", "`open` writes a file outside a scratch folder"),
        ("open('x', mode=chosen)", "`open` writes a file outside a scratch folder"),
        ("open(*names)\nopen('x', **options)", "`open` writes a file outside a scratch folder"),
        ("from pathlib import Path\nPath('x').open('a')", "`open` writes a file outside a scratch folder"),
        ("from pathlib import Path\nPath('x').write_text('y')", "`write_text` writes a file outside a scratch folder"),
        ("import torch\ntorch.save({}, 'x')", "`save` writes a file outside a scratch folder"),
        ("DataLoader(data, num_workers=2)", "`num_workers` starts other programs"),
        ("LogisticRegression(n_jobs=-1)", "`n_jobs` starts other programs"),
    ],
)
def test_what_an_experiment_does_not_need_is_named(tmp_path: Path, source: str, message: str) -> None:
    found = lint(tmp_path, source)
    assert [text for *_, text in found if text.startswith(message)], found


@pytest.mark.parametrize(
    "source",
    [
        "import math, torch\nimport torch.nn.functional as F\nfrom torch.utils.flop_counter import FlopCounterMode",
        "from reproductions.lab import Result\nfrom reproductions.lab.training import train",
        "from sklearn.datasets import load_digits\nfrom scipy.linalg import sqrtm\nfrom PIL import Image",
        "open('x')\nopen('x', 'rb')\nopen('x', mode='r', encoding='utf-8')",
        "from pathlib import Path\nPath(__file__).parent.joinpath('x').read_text()",
        "model.eval()\ntext.replace('a', 'b')\nre.compile('a')\nself.__class__.__name__",
        "def load(x): ...\nload(1)",
        """
        from tempfile import TemporaryDirectory
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            open(folder + "/x", "w").write("y")
        """,
        "LogisticRegression(n_jobs=1)\nDataLoader(data, num_workers=0)",
        "def broken(",
    ],
)
def test_what_an_experiment_needs_passes(tmp_path: Path, source: str) -> None:
    assert lint(tmp_path, source) == []


def test_a_problem_stands_where_it_is_counted_in_characters(tmp_path: Path) -> None:
    assert [place[:2] for place in lint(tmp_path, 'áé = "ñ"; eval("1")')] == [(1, 11)]


def test_a_scratch_folder_must_be_the_one_of_tempfile(tmp_path: Path) -> None:
    source = """
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
    """
    assert len(lint(tmp_path, source)) == 1


def test_the_reproductions_of_the_project_pass() -> None:
    files = sorted((ROOT / "reproductions").rglob("*.py"))
    assert [problem for file in files for problem in lint_file(file, ROOT)] == []
