"""A hash of the code that a reproduction's numbers depend on.

It covers the parsed code, without comments and docstrings, of the file itself
and of those definitions and imports in `reproductions/lab` that it reaches, so a
change to a block that a reproduction does not use leaves its record current.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from genai_kb.files import RefusedFileError, read_project_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

LAB = "reproductions.lab"
MAX_SOURCE = 64 * 1024  # bytes of one file; what a parser makes of a larger one fills the memory
NOT_PYTHON = (SyntaxError, ValueError, MemoryError, RecursionError)  # the last two: nested too deep


class CodeError(ValueError):
    """The code cannot be followed; the message says where and what to write instead."""

    def __init__(self, file: Path, line: int, message: str) -> None:
        super().__init__(message)
        self.file = file
        self.line = line
        self.message = message


@dataclass(frozen=True)
class _LabImport:
    """One imported name: the lab file that it comes from, its name there, and where it is imported."""

    source: Path
    name: str
    importer: Path
    line: int


@dataclass(frozen=True)
class _Module:
    """A parsed file: what it binds by name, its lab imports, and the rest."""

    name: str  # its path below the root
    tree: ast.Module
    definitions: dict[str, list[ast.stmt]]  # with imports from outside the project
    imports: dict[str, _LabImport]
    always: list[ast.stmt]  # statements without a name: they run on import


@dataclass(frozen=True)
class _Code:
    """A piece of code as canonical text, with the names that occur in it."""

    text: str
    names: list[str]


def read_source(file: Path, root: Path) -> str:
    """Return the text of a Python file of the project.

    Raises:
        RefusedFileError: it is not read, or names an encoding other than UTF-8: Python would then run other
            code than people see.
        SyntaxError, ValueError: it is no text in UTF-8.
        OSError: it cannot be read.
    """
    content = read_project_file(file, root, MAX_SOURCE)
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    if encoding != "utf-8":
        raise RefusedFileError(f"is in the encoding {encoding}; save it as UTF-8, without a byte order mark")
    return content.decode("utf-8")


class CodeHasher:
    """Reads the reproductions under one root; each file and definition is read once.

    Only lab's files are kept as parsed, since nobody imports a reproduction and the trees are large.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lab: dict[Path, _Module] = {}
        self._definitions: dict[tuple[str, str], _Code] = {}
        self._lab_files: dict[str, Path | None] = {}
        self._names: dict[Path, set[str]] = {}

    def hash(self, reproduction: Path) -> str:
        """Return "sha256:..." over what the file reaches.

        Raises:
            CodeError: a file does not parse, or imports lab in a way that cannot be followed.
            OSError: a file cannot be read.
        """
        try:
            return self._hash(reproduction)
        except RecursionError as error:
            raise CodeError(reproduction, 1, "is nested too deep, or lab imports in a circle") from error

    def names(self, reproduction: Path) -> set[str]:
        """Return what `defined_names` finds in a file that `hash` has read; nothing for one that it has not."""
        return self._names.get(reproduction, set())

    def _hash(self, reproduction: Path) -> str:
        module = self._parse(reproduction)
        self._names[reproduction] = defined_names(module.tree)
        code = _read(reproduction, [module.tree])
        reached: dict[tuple[str, str], str] = {}
        self._reach(module, reproduction, code.names, reached)
        digest = hashlib.sha256()
        for key in sorted(reached):
            digest.update(f"{key[0]}\0{key[1]}\0{reached[key]}\n".encode())
        digest.update(code.text.encode())
        return f"sha256:{digest.hexdigest()}"

    def _reach(self, module: _Module, file: Path, names: list[str], reached: dict[tuple[str, str], str]) -> None:
        """Follow names that are used in a file into lab's definitions."""
        for name in names:
            if name in module.imports:
                self._follow(module.imports[name], reached)
            elif name in module.definitions and module.name.startswith("reproductions/lab/"):
                self._take(file, name, reached)

    def _follow(self, lab_import: _LabImport, reached: dict[tuple[str, str], str]) -> None:
        """Go to where an imported name is defined; lab/__init__.py passes names on."""
        source = self._module(lab_import.source)
        if lab_import.name in source.imports:
            self._follow(source.imports[lab_import.name], reached)
        elif lab_import.name in source.definitions:
            self._take(lab_import.source, lab_import.name, reached)
        else:
            message = f"imports {lab_import.name}, which {source.name} does not define"
            raise CodeError(lab_import.importer, lab_import.line, message)

    def _take(self, file: Path, name: str, reached: dict[tuple[str, str], str]) -> None:
        """Add one definition of a lab file, and all that it uses in turn."""
        module = self._module(file)
        key = (module.name, name)
        if key in reached:
            return
        if key not in self._definitions:
            self._definitions[key] = _read(file, [*module.definitions[name], *module.always])
        reached[key] = self._definitions[key].text
        self._reach(module, file, self._definitions[key].names, reached)

    def _module(self, file: Path) -> _Module:
        if file not in self._lab:
            self._lab[file] = self._parse(file)
        return self._lab[file]

    def _parse(self, file: Path) -> _Module:
        try:
            tree = ast.parse(read_source(file, self._root))
        except RefusedFileError as error:
            raise CodeError(file, 1, str(error)) from error
        except NOT_PYTHON as error:
            line = getattr(error, "lineno", None) or 1
            reason = getattr(error, "msg", None) or str(error) or "nested too deep"
            raise CodeError(file, line, f"is not valid Python: {reason}") from error
        module = _Module(file.relative_to(self._root).as_posix(), tree, {}, {}, [])
        for statement in tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self._add_import(file, statement, module)
            elif names := bound_names(statement):
                for name in names:
                    module.definitions.setdefault(name, []).append(statement)
            elif not _is_docstring(statement):
                module.always.append(statement)
        return module

    def _add_import(self, file: Path, statement: ast.Import | ast.ImportFrom, module: _Module) -> None:
        if not _concerns_project(statement):
            for alias in statement.names:
                name = alias.asname or alias.name.partition(".")[0]
                bound = module.always if name == "*" else module.definitions.setdefault(name, [])
                bound.append(_with_one_name(statement, alias))
        elif isinstance(statement, ast.Import):
            raise CodeError(file, statement.lineno, f"imports a lab module whole; write `from {LAB}.x import name`")
        else:
            module.imports.update(self._lab_imports(file, statement))

    def _lab_imports(self, file: Path, statement: ast.ImportFrom) -> dict[str, _LabImport]:
        module = "." * statement.level + (statement.module or "")
        if module != LAB and not module.startswith(f"{LAB}."):
            message = f"imports {module}; of the project, import from {LAB} only, by its full name"
            raise CodeError(file, statement.lineno, message)
        target = self._lab_file(module)
        if target is None:
            raise CodeError(file, statement.lineno, f"imports {module}, which does not exist")
        if any(alias.name == "*" for alias in statement.names):
            raise CodeError(file, statement.lineno, f"imports * from {module}; name what you need")
        return {
            alias.asname or alias.name: _LabImport(target, alias.name, file, statement.lineno)
            for alias in statement.names
        }

    def _lab_file(self, module: str) -> Path | None:
        """The file of a lab module, looked for once."""
        if module not in self._lab_files:
            target = self._root.joinpath(*module.split("."))
            target = target / "__init__.py" if target.is_dir() else target.with_suffix(".py")
            self._lab_files[module] = target if target.is_file() else None
        return self._lab_files[module]


def _concerns_project(statement: ast.Import | ast.ImportFrom) -> bool:
    """Whether an import reads from reproductions/, by its full name or relative to the file."""
    if isinstance(statement, ast.ImportFrom):
        return statement.level > 0 or (statement.module or "").partition(".")[0] == "reproductions"
    return any(alias.name.partition(".")[0] == "reproductions" for alias in statement.names)


def _with_one_name(statement: ast.Import | ast.ImportFrom, alias: ast.alias) -> ast.stmt:
    """The import of one name out of a statement that may import several."""
    if isinstance(statement, ast.Import):
        return ast.Import([alias])
    return ast.ImportFrom(statement.module, [alias], statement.level)


def bound_names(statement: ast.stmt) -> list[str]:
    """The names that a definition or an assignment binds."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


def defined_names(tree: ast.Module) -> set[str]:
    """Functions, classes, methods (Class.method) and constants that a parsed file defines at its top level."""
    names: set[str] = set()
    for statement in tree.body:
        names.update(bound_names(statement))
        if isinstance(statement, ast.ClassDef):
            names.update(f"{statement.name}.{inner}" for part in statement.body for inner in bound_names(part))
    return names


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


# what differs between Python versions for the same code, or says nothing about what it computes
_LEFT_OUT = {"ctx", "type_comment", "type_params", "kind", "type_ignores"}


def _read(file: Path, nodes: Sequence[ast.Module | ast.stmt]) -> _Code:
    """Write code as text and collect the names in it.

    Raises:
        CodeError: lab is imported inside a function or a condition, where it would not be followed.
    """
    writer = _Writer()
    text = "".join(writer.text(node) for node in nodes)
    top = {statement for node in nodes if isinstance(node, ast.Module) for statement in node.body}
    for statement in writer.imports:
        if statement not in top and _concerns_project(statement):
            raise CodeError(file, statement.lineno, f"imports from {LAB} inside a block; move the import to the top")
    return _Code(text, sorted(writer.names))


class _Writer:
    """Writes parsed code as text, the same for every Python version from 3.11 on."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.imports: list[ast.Import | ast.ImportFrom] = []

    def text(self, node: Any) -> str:
        """The text of a node, a list of them, or a plain value."""
        kind = type(node)
        write = self._shorter.get(kind)
        return write(self, node) if write else self._any(kind, node)

    def _any(self, kind: Any, node: Any) -> str:
        if not issubclass(kind, ast.AST):
            return repr(node)
        if kind is ast.Import or kind is ast.ImportFrom:
            self.imports.append(node)
        parts = []
        for name in _fields(kind):
            value = getattr(node, name, None)
            if value is None or value == []:
                continue
            if name == "body" and isinstance(value, list):
                value = [part for part in value if not _is_docstring(part)]
            parts.append(f"{name}={self.text(value)}")
        return f"{kind.__name__}({','.join(parts)})"

    def _list(self, nodes: list[Any]) -> str:
        return f"[{','.join([self.text(node) for node in nodes])}]"

    def _name(self, node: ast.Name) -> str:
        self.names.add(node.id)
        return f"Name(id={node.id!r})"

    def _constant(self, node: ast.Constant) -> str:
        return "Constant()" if node.value is None else f"Constant(value={node.value!r})"

    def _attribute(self, node: ast.Attribute) -> str:
        return f"Attribute(value={self.text(node.value)},attr={node.attr!r})"

    # Most nodes are of these kinds, so they take a shorter way to the text that `_any` would give.
    _shorter: ClassVar[dict[type, Callable[[_Writer, Any], str]]] = {
        str: lambda _, value: repr(value),
        list: _list,
        ast.Name: _name,
        ast.Constant: _constant,
        ast.Attribute: _attribute,
    }


@cache
def _fields(kind: Any) -> tuple[str, ...]:
    """The fields of a kind of node that count."""
    return tuple(name for name in kind._fields if name not in _LEFT_OUT)
