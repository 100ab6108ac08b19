"""A lint of the reproductions: imports and calls that an experiment does not need.

It reads the parsed code and runs nothing. It is a lint and no sandbox: it tells an honest contributor what
to write instead and a reviewer where to look, while code that wants to hide from it can. What holds such
code is where it runs: a process with limits and, for a stranger's pull request, without network or rights.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from genai_kb.codehash import NOT_PYTHON, read_source
from genai_kb.files import RefusedFileError
from genai_kb.problems import Problem
from genai_kb.text import forbidden_characters

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What an experiment may import: arithmetic, data structures, and the libraries of the extras `run` and `peft`.
ALLOWED = frozenset({
    "__future__", "abc", "bisect", "collections", "contextlib", "copy", "dataclasses", "decimal", "enum",
    "fractions", "functools", "hashlib", "heapq", "itertools", "json", "math", "numbers", "operator", "pathlib",
    "random", "re", "statistics", "string", "tempfile", "textwrap", "types", "typing", "unicodedata", "warnings", "zlib",
    "numpy", "peft", "PIL", "reproductions", "safetensors", "scipy", "sklearn", "torch",
})  # fmt: skip

_PROCESSES = "starts other programs or processes, and a reproduction is one process"
_NETWORK = "reaches the network, and a reproduction needs none; data come from `reproductions.lab` or from the seed"
_PICKLE = "can run code hidden in data; keep state in memory, in JSON or in safetensors"
_NATIVE = "loads native code, which nobody can review here"
_SYSTEM = "reaches the operating system; a reproduction follows from its seed alone"
_CODE = "runs text as code; write the code itself"
_CLOCK = "reads the clock; a reproduction follows from its seed alone"

# Why a module is not allowed, by its dotted name; the longest that fits decides.
_REFUSED = {
    **dict.fromkeys(["subprocess", "multiprocessing", "concurrent", "threading", "asyncio", "pty", "joblib"], _PROCESSES),
    **dict.fromkeys(["torch.multiprocessing", "torch.distributed"], _PROCESSES),
    **dict.fromkeys(["socket", "ssl", "urllib", "http", "ftplib", "smtplib", "requests", "httpx", "aiohttp"], _NETWORK),
    **dict.fromkeys(["torch.hub", "huggingface_hub", "scipy.datasets", "xmlrpc", "socketserver"], _NETWORK),
    **dict.fromkeys(["pickle", "marshal", "shelve", "dill", "cloudpickle", "torch.package"], _PICKLE),
    **dict.fromkeys(["ctypes", "cffi", "numpy.ctypeslib", "torch.utils.cpp_extension", "numpy.f2py"], _NATIVE),
    **dict.fromkeys(["os", "sys", "shutil", "signal", "platform", "resource", "mmap", "fcntl", "gc", "inspect"], _SYSTEM),
    **dict.fromkeys(["importlib", "runpy", "code", "codeop", "builtins", "ast"], _CODE),
    **dict.fromkeys(["time", "datetime"], _CLOCK),
}  # fmt: skip

_CALLS = {
    **dict.fromkeys(["eval", "exec", "compile", "__import__"], _CODE),
    **dict.fromkeys(["globals", "locals", "vars"], "changes names behind the reader's back; use the names themselves"),
    **dict.fromkeys(["input", "breakpoint"], "waits for someone at the keyboard, and nobody is there"),
    **dict.fromkeys(["torch.load", "numpy.load"], _PICKLE),
    **dict.fromkeys(["torch.ops.load_library", "torch.classes.load_library"], _NATIVE),
    **dict.fromkeys(["torch.compile"], "starts a compiler, another program"),
    **dict.fromkeys(["numpy.memmap", "numpy.DataSource"], "opens a file for writing or from the network; keep arrays in memory"),
}  # fmt: skip

_WRITERS = frozenset({
    "chmod", "dump", "hardlink_to", "mkdir", "rmdir", "save", "save_file", "save_pretrained", "savetxt", "savez",
    "savez_compressed", "symlink_to", "to_csv", "tofile", "touch", "unlink", "write_bytes", "write_text",
})  # fmt: skip

# Attributes that lead from any object to the interpreter's insides; the others between underscores are harmless.
_INSIDES = frozenset({
    "__base__", "__bases__", "__builtins__", "__code__", "__closure__", "__dict__", "__getattribute__", "__globals__",
    "__import__", "__loader__", "__mro__", "__reduce__", "__reduce_ex__", "__spec__", "__subclasses__",
    "f_back", "f_builtins", "f_globals", "gi_frame", "tb_frame",
})  # fmt: skip

_SCRATCH = "TemporaryDirectory"


def lint_file(file: Path, root: Path) -> list[Problem]:
    """Check one Python file below a project's root.

    Returns:
        the problems in the order of their places. A file that is not Python has none here: `validate` tells of it.
    """
    name = file.relative_to(root).as_posix()
    try:
        source = read_source(file, root)
        tree = ast.parse(source)
        found = sorted({*_invisible(source), *_Lint(source).problems(tree)})
    except (*NOT_PYTHON, OSError, RefusedFileError):
        return []
    return [Problem(name, line, column, "", message) for line, column, message in found]


def _invisible(source: str) -> Iterator[tuple[int, int, str]]:
    """Characters that make code read otherwise than it runs."""
    for offset, name in forbidden_characters(source):
        if source[offset] not in "\t\r":
            line, column = source.count("\n", 0, offset) + 1, offset - source.rfind("\n", 0, offset)
            yield line, column, f"has the character {name}; code holds visible characters only, so write an escape"


class _Lint:
    """Walks a parsed file; knows under which names imported things go."""

    def __init__(self, source: str) -> None:
        self._lines = source.splitlines()
        self._aliases: dict[str, str] = {}

    def problems(self, tree: ast.Module) -> Iterator[tuple[int, int, str]]:
        """Yield line, column and message of each problem."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self._aliases |= {(a.asname or a.name.partition(".")[0]): _bound(a) for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                self._aliases |= {(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names}
        scratch = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.With) and any(self._is_scratch(item.context_expr) for item in node.items)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            for message in self._of(node, in_scratch=id(node) in scratch):
                yield (*self._place(node), message)

    def _of(self, node: ast.AST, *, in_scratch: bool) -> Iterator[str]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _import_problem(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield from _import_problem(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Name):
            yield from self._name_problems(node)
        elif isinstance(node, ast.Attribute):
            yield from self._attribute_problems(node)
        elif isinstance(node, ast.Call):
            yield from self._call_problems(node, in_scratch=in_scratch)

    def _name_problems(self, node: ast.Name) -> Iterator[str]:
        if node.id in _CALLS and node.id not in self._aliases:
            yield f"`{node.id}` {_CALLS[node.id]}"
        elif node.id in _INSIDES:
            yield _insides(node.id)

    def _attribute_problems(self, node: ast.Attribute) -> Iterator[str]:
        full = self._full_name(node)
        if full in _CALLS:
            yield f"`{full}` {_CALLS[full]}"
        elif full in _REFUSED:  # a submodule that needs no import of its own
            yield f"`{full}` {_REFUSED[full]}"
        elif full.startswith("sklearn.datasets.fetch_"):
            yield f"`{full}` {_NETWORK}"
        elif node.attr in _INSIDES:
            yield _insides(node.attr)

    def _call_problems(self, node: ast.Call, *, in_scratch: bool) -> Iterator[str]:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "getattr" and len(node.args) > 1:
            wanted = node.args[1]
            if isinstance(wanted, ast.Constant) and wanted.value in _INSIDES:
                yield _insides(str(wanted.value))
        if any(k.arg == "allow_pickle" and not _is_false(k.value) for k in node.keywords):
            yield f"`allow_pickle` {_PICKLE}"
        if any(k.arg == "num_workers" and getattr(k.value, "value", 1) != 0 for k in node.keywords):
            yield f"`num_workers` {_PROCESSES}"
        if any(k.arg == "n_jobs" and getattr(k.value, "value", 0) not in {None, 1} for k in node.keywords):
            yield f"`n_jobs` {_PROCESSES}"
        if not in_scratch and (name in _WRITERS or (name == "open" and not _only_reads(node))):
            yield f"`{name}` writes a file outside a scratch folder; write inside `with {_SCRATCH}() as folder:`"

    def _is_scratch(self, expression: ast.expr) -> bool:
        return isinstance(expression, ast.Call) and self._full_name(expression.func) == f"tempfile.{_SCRATCH}"

    def _full_name(self, node: ast.expr) -> str:
        """The dotted name that an expression stands for, through the names of imports; "" where it has none."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self._aliases:
            return ""
        return ".".join([self._aliases[node.id], *reversed(parts)])

    def _place(self, node: ast.AST) -> tuple[int, int]:
        """1-based line and column in characters; Python's parser counts columns in bytes."""
        line, offset = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        text = self._lines[line - 1] if line <= len(self._lines) else ""
        return line, len(text.encode()[:offset].decode(errors="ignore")) + 1


def _bound(alias: ast.alias) -> str:
    """What `import a.b` binds is a, and what `import a.b as c` binds is a.b."""
    return alias.name if alias.asname else alias.name.partition(".")[0]


def _import_problem(module: str) -> Iterator[str]:
    if module.startswith("sklearn.datasets.fetch_"):
        yield f"`{module}` {_NETWORK}"
        return
    if module in _CALLS:
        yield f"`{module}` {_CALLS[module]}"
        return
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in _REFUSED:
            yield f"imports `{name}`, which {_REFUSED[name]}"
            return
    if parts[0] not in ALLOWED:
        known = ", ".join(sorted(ALLOWED - {"__future__", "reproductions"}))
        yield f"imports `{parts[0]}`, which reproductions do without; they import from {known}"


def _insides(name: str) -> str:
    return f"`{name}` reaches into the interpreter; an experiment has no need of it"


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def _only_reads(call: ast.Call) -> bool:
    """Whether a call of open() or Path.open() has a plain reading mode."""
    is_method = isinstance(call.func, ast.Attribute)
    position = 0 if is_method else 1
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"] + call.args[position : position + 1]
    if any(keyword.arg is None for keyword in call.keywords):
        return False
    return all(isinstance(m, ast.Constant) and isinstance(m.value, str) and set(m.value) <= set("rbt") for m in modes)
