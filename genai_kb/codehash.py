"""A hash of the code that a reproduction's numbers depend on.

It covers the parsed code, without comments and docstrings, of the file itself
and of those definitions in `reproductions/lab` that it reaches, so a change to
a block that a reproduction does not use leaves its record current.
"""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

LAB = "reproductions.lab"


class CodeError(ValueError):
    """The code cannot be followed; the message says where and what to write instead."""

    def __init__(self, file: Path, line: int, message: str) -> None:
        super().__init__(message)
        self.file = file
        self.line = line
        self.message = message


@dataclass(frozen=True)
class _Module:
    """A parsed file: its definitions by name, its lab imports, and the rest."""

    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, tuple[Path, str]]  # local name -> (lab file, name there)
    always: list[ast.stmt]  # statements without a name: they run on import


class CodeHasher:
    """Computes hashes for the reproductions under one root; each file is parsed once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._modules: dict[Path, _Module] = {}

    def hash(self, reproduction: Path) -> str:
        """Return "sha256:..." over what the file reaches.

        Raises:
            CodeError: a file does not parse, or imports lab in a way that cannot be followed.
            OSError: a file cannot be read.
        """
        module = self._module(reproduction)
        reached: dict[tuple[str, str], str] = {}
        own = [statement for body in module.definitions.values() for statement in body] + module.always
        self._reach(reproduction, own, reached)
        digest = hashlib.sha256()
        for key in sorted(reached):
            digest.update(f"{key[0]}\0{key[1]}\0{reached[key]}\n".encode())
        for statement in ast.parse(reproduction.read_text(encoding="utf-8")).body:
            digest.update(_canonical(statement).encode())
        return f"sha256:{digest.hexdigest()}"

    def _reach(self, file: Path, statements: list[ast.stmt], reached: dict[tuple[str, str], str]) -> None:
        """Follow every name that these statements of a file use into lab's definitions."""
        module = self._module(file)
        for name in sorted(_names(statements)):
            if name in module.imports:
                self._take(*module.imports[name], reached)
            elif name in module.definitions and self._in_lab(file):
                self._take(file, name, reached)

    def _take(self, file: Path, name: str, reached: dict[tuple[str, str], str]) -> None:
        """Add one definition of a lab file, and all that it uses in turn."""
        module = self._module(file)
        if name in module.imports:  # lab/__init__.py passes names on
            self._take(*module.imports[name], reached)
            return
        key = (file.relative_to(self._root).as_posix(), name)
        if key in reached:
            return
        body = module.definitions.get(name)
        if body is None:
            raise CodeError(file, 1, f"{name!r} is imported from {key[0]}, which does not define it")
        reached[key] = "".join(_canonical(statement) for statement in [*body, *module.always])
        self._reach(file, [*body, *module.always], reached)

    def _in_lab(self, file: Path) -> bool:
        return file.is_relative_to(self._root / "reproductions" / "lab")

    def _module(self, file: Path) -> _Module:
        if file not in self._modules:
            self._modules[file] = self._parse(file)
        return self._modules[file]

    def _parse(self, file: Path) -> _Module:
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None) or 1
            raise CodeError(file, line, f"is not valid Python: {getattr(error, 'msg', error)}") from error
        module = _Module({}, {}, [])
        for statement in tree.body:
            if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("reproductions"):
                module.imports.update(self._lab_imports(file, statement))
            elif isinstance(statement, ast.Import):
                if any(alias.name.startswith("reproductions") for alias in statement.names):
                    raise CodeError(
                        file,
                        statement.lineno,
                        f"imports a lab module whole; write `from {LAB}.x import name`",
                    )
            elif isinstance(statement, ast.ImportFrom):
                continue
            elif names := _defined(statement):
                for name in names:
                    module.definitions.setdefault(name, []).append(statement)
            elif not _is_docstring(statement):
                module.always.append(statement)
        return module

    def _lab_imports(self, file: Path, statement: ast.ImportFrom) -> dict[str, tuple[Path, str]]:
        module = statement.module or ""
        if module != LAB and not module.startswith(f"{LAB}."):
            raise CodeError(file, statement.lineno, f"imports {module}; a reproduction may import from {LAB} only")
        target = self._root.joinpath(*module.split("."))
        target = target / "__init__.py" if target.is_dir() else target.with_suffix(".py")
        if not target.is_file():
            raise CodeError(file, statement.lineno, f"imports {module}, which does not exist")
        if any(alias.name == "*" for alias in statement.names):
            raise CodeError(file, statement.lineno, f"imports * from {module}; name what you need")
        return {alias.asname or alias.name: (target, alias.name) for alias in statement.names}


def _defined(statement: ast.stmt) -> list[str]:
    """The names that a module-level statement binds."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


def defined_names(source: str) -> set[str]:
    """Functions, classes, methods (Class.method) and constants that a file defines at its top level.

    Raises:
        SyntaxError: the file is not valid Python.
    """
    names: set[str] = set()
    for statement in ast.parse(source).body:
        names.update(_defined(statement))
        if isinstance(statement, ast.ClassDef):
            names.update(f"{statement.name}.{inner}" for part in statement.body for inner in _defined(part))
    return names


def _names(statements: list[ast.stmt]) -> set[str]:
    """All plain names that occur in the statements."""
    return {node.id for statement in statements for node in ast.walk(statement) if isinstance(node, ast.Name)}


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


# what differs between Python versions for the same code, or says nothing about what it computes
_LEFT_OUT = {"ctx", "type_comment", "type_params", "kind", "type_ignores"}


def _canonical(node: Any) -> str:
    """The parsed code as text, the same for every Python version from 3.11 on."""
    if isinstance(node, ast.AST):
        parts = []
        for name, value in ast.iter_fields(node):
            if name in _LEFT_OUT or value is None or value == []:
                continue
            if name == "body" and isinstance(value, list):
                value = [part for part in value if not _is_docstring(part)]  # noqa: PLW2901
            parts.append(f"{name}={_canonical(value)}")
        return f"{type(node).__name__}({','.join(parts)})"
    if isinstance(node, list):
        return f"[{','.join(_canonical(part) for part in node)}]"
    return repr(node)
