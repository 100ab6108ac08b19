"""What happens inside the child process: load one reproduction, run it, send back what it measured.

The answer travels as JSON: floats come through exactly, and nothing that a reproduction returns can
run code in the supervisor. This module imports quickly, without torch.
"""

from __future__ import annotations

import faulthandler
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import signal
import sys
import threading
import time
import traceback
from importlib.machinery import FileFinder, SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from multiprocessing.connection import Connection
    from types import CodeType, ModuleType

    from genai_kb.runner.task import Task

MAX_ROWS_BYTES = 5_000_000
MAX_MESSAGE = 300  # characters
MAX_TRACEBACK = 20_000

# Libraries read these once, when they are loaded. The hash seed orders sets of strings.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONSAFEPATH": "1",  # a file in the current folder is not taken for a library
    "JOBLIB_MULTIPROCESSING": "0",  # scikit-learn's helper would leave a semaphore behind where a child is ended
}


class FaultError(Exception):
    """A reproduction that breaks its contract; the message completes "the task ..."."""


def main(task: Task, answer: Connection, output: Connection, dumps: Connection, lifeline: Connection) -> None:
    """Run the task and send one JSON message through `answer`.

    Args:
        task: what to measure.
        answer: takes the message.
        output: takes what the reproduction prints.
        dumps: takes the stack, on a crash or when the supervisor asks for it by SIGUSR1.
        lifeline: ends when the supervisor does; nothing is ever written to it.
    """
    _detach(output, dumps)
    threading.Thread(target=_end_with_supervisor, args=(lifeline,), daemon=True).start()
    os.environ.update(ENVIRONMENT)
    sys.meta_path.insert(0, _ProjectFinder(task.root.absolute()))
    sys.dont_write_bytecode = True  # a measurement writes nothing into the tree
    try:
        message = _measure(task)
    except FaultError as fault:
        message = {"error": str(fault)}
    except BaseException as error:  # noqa: BLE001 - also sys.exit() in a reproduction is a fault to report
        message = {"error": _describe(error, task.file), "traceback": _traceback_text(error)}
    message |= {
        "environment": _environment(),
        "memory_mb": _peak_memory_mb(),
        "processor_seconds": time.process_time(),
    }
    sys.stdout.flush()
    answer.send_bytes(json.dumps(message).encode())


def _measure(task: Task) -> dict[str, Any]:
    """Load and run the reproduction; return its checked metrics and rows."""
    _make_torch_deterministic()  # where the fork server has loaded it
    module = _load(task.file)
    _make_torch_deterministic()  # where the reproduction has
    if not callable(getattr(module, "run", None)):
        raise FaultError("defines no function run(seed, settings)")
    if task.short and not hasattr(module, "SHORT"):
        raise FaultError("defines no SHORT = Settings(...), the sizes of its short form")
    result = module.run(task.seed, module.SHORT) if task.short else module.run(task.seed)
    metrics, rows = getattr(result, "metrics", None), getattr(result, "rows", None)
    if not isinstance(metrics, dict) or not isinstance(rows, list):
        raise FaultError(
            f"returned {type(result).__name__} from run(); "
            "return Result(metrics={...}, rows=[...]) from reproductions.lab"
        )
    _check_rows(rows)
    return {"metrics": _checked_metrics(metrics), "rows": rows}


def _detach(output: Connection, dumps: Connection) -> None:
    """Leave the terminal: own session, deaf to Ctrl-C, with all that is printed sent to the supervisor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "win32":
        sys.stdout = sys.stderr = _by_line(os.open(os.devnull, os.O_WRONLY))
        return
    os.setsid()
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout, sys.stderr = _by_line(1), _by_line(2)
    faulthandler.enable(dumps.fileno(), all_threads=False)
    faulthandler.register(signal.SIGUSR1, dumps.fileno(), all_threads=False)


def _by_line(fd: int) -> TextIO:
    """Open a text stream that writes line by line, so that little is lost in a crash."""
    return os.fdopen(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace")


def _end_with_supervisor(lifeline: Connection) -> None:
    """Wait for the supervisor's end and take the whole process group along: no orphan goes on computing."""
    lifeline.poll(None)
    if sys.platform == "win32":
        os._exit(1)
    os.killpg(0, signal.SIGKILL)


def _make_torch_deterministic() -> None:
    """Give torch one thread, and make it refuse operations whose result varies, where it is loaded."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        # The same as use_deterministic_algorithms(True), which first spends a second on importing a compiler.
        torch.set_deterministic_debug_mode("error")


class _FromSource(SourceFileLoader):
    """Compiles what people can read: a cached .pyc beside it may hold other code."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of a module's source file."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _ProjectFinder:
    """Finds the package `reproductions` in the project's sources, and nothing else there.

    With the project's root among the paths of imports, a file of its own could stand for any library.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def find_spec(self, fullname: str, path: Sequence[str] | None, _target: object = None) -> ModuleSpec | None:
        """Return how to load a module, None for all that is not the project's."""
        if fullname.partition(".")[0] != "reproductions":
            return None
        for folder in path or [str(self._root)]:
            spec = FileFinder(folder, (_FromSource, [".py"])).find_spec(fullname)
            if spec is not None:
                return spec
        return None


def _load(file: Path) -> ModuleType:
    """Import a file whose name has hyphens. It is registered, since dataclasses look their module up."""
    name = "reproduction_" + file.stem.replace("-", "_")
    spec = importlib.util.spec_from_file_location(name, file, loader=_FromSource(name, str(file.absolute())))
    if spec is None or spec.loader is None:
        raise FaultError(f"is in a file that Python cannot import: {file.name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _checked_metrics(metrics: dict[Any, Any]) -> dict[str, float]:
    """Return the metrics as floats, or say which one is not a finite number."""
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise FaultError(f"has a metric whose name is {name!r}; names are strings")
        if type(value) not in {int, float}:
            raise FaultError(f'has a metric "{name}" of type {type(value).__name__}; convert it with float(...)')
        if not math.isfinite(value):
            raise FaultError(
                f'measured {value} for metric "{name}"; metrics are finite, '
                "so look for a division by zero or a rate that is too high"
            )
    return {name: float(value) for name, value in metrics.items()}


def _check_rows(rows: list[Any]) -> None:
    """Refuse rows that JSON cannot hold, naming the row and column, or that are too many."""
    size = 0
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise FaultError(f"returned {type(row).__name__} as row {number}; a row is a dict of columns")
        for column, value in row.items():
            if not isinstance(column, str):
                raise FaultError(f"has a column named {column!r} in row {number}; names are strings")
            try:
                size += len(column) + len(json.dumps(value, allow_nan=False))
            except (TypeError, ValueError, RecursionError) as error:
                raise FaultError(
                    f'has in row {number}, column "{column}", what JSON cannot hold: {error}; '
                    "use finite float(...), int(...), str(...) or .tolist()"
                ) from None
        if size > MAX_ROWS_BYTES:
            raise FaultError(
                f"returned rows of more than {MAX_ROWS_BYTES // 10**6} MB; keep only the points that the figure shows"
            )


def _describe(error: BaseException, file: Path) -> str:
    """Say in one line what was raised and where in the reproduction."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file.absolute())]
    if isinstance(error, SyntaxError) and error.filename == str(file.absolute()):
        lines = [error.lineno]
    place = f" ({file.name}:{lines[-1]})" if lines else ""
    message = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    hint = "see the traceback"
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("reproductions"):
        hint = "reproductions need: pip install 'genai-kb[run]'"
    return f"raised {type(error).__name__}{place}: {message[:MAX_MESSAGE]}; {hint}"


def _traceback_text(error: BaseException) -> str:
    """Return the traceback without the frames of this module and of Python's own import."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith((__file__, "<frozen importlib")):
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(error), error, frame))[-MAX_TRACEBACK:]


def _environment() -> dict[str, Any]:
    """Return what the numbers may depend on beyond the seed."""
    torch = sys.modules.get("torch")
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        version = None
    return {
        "python": platform.python_version(),
        "torch": version,
        "platform": " ".join(filter(None, [platform.system(), platform.machine(), *platform.libc_ver()])),
        "processor": _processor(),
        "threads": 1 if torch is None else torch.get_num_threads(),
    }


def _processor() -> str:
    """Return the processor's name: /proc has the full one, `platform` often has none on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in MB; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 10**6 if sys.platform == "darwin" else peak * 1024 / 10**6
