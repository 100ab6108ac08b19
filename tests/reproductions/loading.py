"""Reproductions as modules, for the tests that look inside them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2] / "reproductions"


def load(path: str | Path) -> ModuleType:
    """The module of a reproduction, by its path below reproductions/."""
    name = f"reproduction_{Path(path).stem.replace('-', '_')}"
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
