from __future__ import annotations

import importlib.util
import os
import py_compile
import re
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from genai_kb.runner import STOPPED, Limits, Task, start_context, supervise

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from genai_kb.runner.supervise import Context

    Toy = Callable[..., Task]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="is about signals and process groups")

LIMITS = Limits(seconds=20, memory_mb=2048)


# What comes back


@pytest.mark.parametrize("value", [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2**53 + 2])
def test_a_metric_comes_back_bit_for_bit(toy: Toy, context: Context, value: float) -> None:
    outcome = supervise(toy(f"def run(seed): return Result({{'m': {value!r}}})"), LIMITS, context=context)
    assert outcome.ok
    assert outcome.metrics is not None
    assert outcome.metrics["m"].hex() == float(value).hex()


def test_seed_and_rows_come_through(toy: Toy, context: Context) -> None:
    source = """
        def run(seed):
            return Result({"twice": 2 * seed}, [{"panel": "loss", "x": 1, "image": [[0, 255], [7, 8]]}])
    """
    outcome = supervise(toy(source, seed=42), LIMITS, context=context)
    assert outcome.metrics == {"twice": 84.0}
    assert outcome.rows == [{"panel": "loss", "x": 1, "image": [[0, 255], [7, 8]]}]


@pytest.mark.parametrize(("short", "steps"), [(False, 150.0), (True, 2.0)])
def test_the_short_form_runs_with_the_short_settings(toy: Toy, context: Context, short: bool, steps: float) -> None:
    source = """
        from dataclasses import dataclass

        @dataclass(frozen=True)
        class Settings:
            steps: int = 150

        SHORT = Settings(steps=2)

        def run(seed, settings=Settings()):
            return Result({"steps": settings.steps})
    """
    assert supervise(toy(source, short=short), LIMITS, context=context).metrics == {"steps": steps}


def test_lab_is_imported_from_the_root_of_the_task(toy: Toy, context: Context) -> None:
    source = """
        from reproductions.lab import HOME
        def run(seed): return Result({"at_home": float(HOME == "the toy project")})
    """
    assert supervise(toy(source), LIMITS, context=context).metrics == {"at_home": 1.0}


def test_nothing_is_written_into_the_tree(toy: Toy, context: Context) -> None:
    task = toy("def run(seed): return Result({})")
    before = set(task.root.rglob("*"))
    assert supervise(task, LIMITS, context=context).ok
    assert set(task.root.rglob("*")) == before


def test_the_outcome_tells_what_the_task_took(toy: Toy, context: Context) -> None:
    source = """
        import time
        def run(seed):
            held = b"x" * 150_000_000
            time.sleep(0.2)
            return Result({"m": float(len(held))})
    """
    outcome = supervise(toy(source), LIMITS, context=context)
    assert outcome.memory_mb > 150
    assert 0.2 < outcome.seconds < 5
    assert set(outcome.environment) == {"python", "torch", "platform", "processor", "threads"}


def test_what_is_printed_is_kept_and_not_mixed_into_the_progress(
    toy: Toy, context: Context, capfd: pytest.CaptureFixture[str]
) -> None:
    source = """
        import subprocess, sys
        def run(seed):
            print("from print")
            print("from stderr", file=sys.stderr)
            subprocess.run(["echo", "from a program"])
            print("from an unfinished line, ü", end="")
            return Result({})
    """
    outcome = supervise(toy(source), LIMITS, context=context)
    assert outcome.output.splitlines() == [
        "from print",
        "from stderr",
        "from a program",
        "from an unfinished line, ü",
    ]
    assert capfd.readouterr() == ("", "")


def test_of_a_flood_of_output_only_the_end_is_kept(toy: Toy, context: Context) -> None:
    source = """
        def run(seed):
            for i in range(20_000): print("line", i)
            return Result({})
    """
    outcome = supervise(toy(source), LIMITS, context=context)
    assert outcome.ok
    assert outcome.output.endswith("line 19999\n")
    assert len(outcome.output) <= 20_000


# The same seed gives the same numbers

TRAINING = """
    import torch

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(64, 32, generator=generator)
        target = torch.randn(64, 1, generator=generator)
        model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 1))
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) / 8)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(30):
            loss = (model(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        weights = torch.cat([weight.detach().flatten() for weight in model.parameters()]).double()
        return Result({"loss": loss.item(), "weights": weights.sum().item(), "norm": weights.norm().item()})
"""


def test_a_seed_trained_twice_agrees_bit_for_bit(toy: Toy, context: Context) -> None:
    pytest.importorskip("torch")
    task = toy(TRAINING)
    first, second = (supervise(task, LIMITS, context=context) for _ in range(2))
    assert first.ok
    assert first.metrics == second.metrics
    assert supervise(toy(TRAINING, seed=2), LIMITS, context=context).metrics != first.metrics


def test_a_child_measures_what_this_process_measures(
    toy: Toy, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    task = toy(TRAINING)
    lab = _import("toy_lab", task.root / "reproductions" / "lab" / "__init__.py")
    monkeypatch.setitem(sys.modules, "reproductions.lab", lab)
    module = _import("toy_method", task.file)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        here = module.run(task.seed).metrics
    finally:
        torch.set_num_threads(threads)
    assert supervise(task, LIMITS, context=context).metrics == here


def _import(name: str, file: Path) -> ModuleType:
    """Import a file into this process, under the name given."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_child_computes_deterministically(toy: Toy, context: Context) -> None:
    pytest.importorskip("torch")
    source = """
        import os, sys
        import torch
        AT_IMPORT = torch.get_num_threads()

        def run(seed):
            return Result({
                "threads": torch.get_num_threads(),
                "threads_at_import": AT_IMPORT,
                "threads_of_libraries": int(os.environ["OMP_NUM_THREADS"]),
                "threads_of_process": len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 2,
                "deterministic": int(torch.are_deterministic_algorithms_enabled()),
                "random_hashes": sys.flags.hash_randomization,
            })
    """
    assert supervise(toy(source), LIMITS, context=context).metrics == {
        "threads": 1,
        "threads_at_import": 1,
        "threads_of_libraries": 1,
        "threads_of_process": 2,  # the main one, and the one that watches for the supervisor's end
        "deterministic": 1,
        "random_hashes": 0,
    }


# Faults

FAULTS = {
    "exception": (
        "def run(seed):\n    raise ValueError('boom\\nand more')",
        "raised ValueError (toy-method.py:4): boom and more; see the traceback",
    ),
    "sys.exit": ("import sys\ndef run(seed): sys.exit(0)", "raised SystemExit (toy-method.py:4): 0"),
    "exit": (
        "import os\ndef run(seed): os._exit(7)",
        "ended with exit code 7 before run() returned; see what it printed",
    ),
    "crash": ("import ctypes\ndef run(seed): ctypes.string_at(0)", "was killed by SIGSEGV; see the traceback"),
    "killed": ("import os\ndef run(seed): os.kill(os.getpid(), 9)", "was killed from outside (SIGKILL)"),
    "missing module": (
        "import nosuchmodule",
        "No module named 'nosuchmodule'; reproductions need: pip install 'genai-kb[run]'",
    ),
    "missing block": ("from reproductions.lab import nope", "raised ImportError (toy-method.py:3): cannot import"),
    "syntax": ("x = 1\ndef run(seed:", "raised SyntaxError (toy-method.py:4): '(' was never closed"),
    "no run": ("x = 1", "defines no function run(seed, settings)"),
    "nothing": ("def run(seed): pass", "returned NoneType from run(); return Result(metrics={...}, rows"),
    "a dict": ("def run(seed): return {'m': 1.0}", "returned dict from run(); return Result(metrics={...}, rows"),
    "nan": (
        "def run(seed): return Result({'good': 1.0, 'loss': float('nan')})",
        'measured nan for metric "loss"; metrics are finite',
    ),
    "infinity": ("def run(seed): return Result({'loss': -float('inf')})", 'measured -inf for metric "loss"'),
    "bool": ("def run(seed): return Result({'m': True})", 'metric "m" of type bool; convert it with float('),
    "string": ("def run(seed): return Result({'m': '1'})", 'metric "m" of type str; convert it with float('),
    "name": ("def run(seed): return Result({1: 1.0})", "has a metric whose name is 1; names are strings"),
    "row": ("def run(seed): return Result({}, [{'x': 1}, 3])", "returned int as row 1; a row is a dict"),
    "column": ("def run(seed): return Result({}, [{1: 1}])", "has a column named 1 in row 0"),
    "cell": (
        "def run(seed): return Result({}, [{'x': 1}, {'x': {1, 2}}])",
        'has in row 1, column "x", what JSON cannot hold: Object of type set',
    ),
    "nan in a cell": (
        "def run(seed): return Result({}, [{'y': float('nan')}])",
        'has in row 0, column "y", what JSON cannot hold',
    ),
    "many rows": (
        "def run(seed): return Result({}, [{'text': 'x' * 1000}] * 6000)",
        "returned rows of more than 5 MB",
    ),
}


@pytest.mark.parametrize(("source", "error"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_told_in_one_line(toy: Toy, context: Context, source: str, error: str) -> None:
    outcome = supervise(toy(source), LIMITS, context=context)
    assert error in str(outcome.error)
    assert "\n" not in str(outcome.error)
    assert (outcome.ok, outcome.metrics, outcome.rows) == (False, None, None)


def test_the_short_form_of_a_file_without_one_is_a_fault(toy: Toy, context: Context) -> None:
    outcome = supervise(toy("def run(seed): return Result({})", short=True), LIMITS, context=context)
    assert "defines no SHORT = Settings(...)" in str(outcome.error)


def test_numpy_and_torch_scalars_are_to_be_converted(toy: Toy, context: Context) -> None:
    pytest.importorskip("torch")
    for maker in ("numpy.float64(1)", "torch.tensor(1.0)"):
        task = toy(f"import numpy, torch\ndef run(seed): return Result({{'m': {maker}}})")
        assert 'metric "m" of type' in str(supervise(task, LIMITS, context=context).error)


def test_a_traceback_begins_in_the_reproduction(toy: Toy, context: Context) -> None:
    source = """
        def half(x): return 1 / x
        def run(seed): return Result({"m": half(0)})
    """
    traceback = str(supervise(toy(source), LIMITS, context=context).traceback)
    files = re.findall(r'File "(.*?)", line \d+, in (\w+)', traceback)
    assert [(Path(file).name, function) for file, function in files] == [
        ("toy-method.py", "run"),
        ("toy-method.py", "half"),
    ]
    assert traceback.endswith("ZeroDivisionError: division by zero\n")


def test_a_crash_leaves_the_stack_and_what_was_printed(toy: Toy, context: Context) -> None:
    source = """
        import ctypes
        def run(seed):
            print("so far")
            ctypes.string_at(0)
    """
    outcome = supervise(toy(source), LIMITS, context=context)
    assert 'toy-method.py", line 6 in run' in str(outcome.traceback)
    assert outcome.output == "so far\n"


# Limits


@pytest.mark.parametrize(
    "body",
    ["time.sleep(60)", "while True: pass", "10 ** 10 ** 8", "while True: print('flood')"],
    ids=["sleep", "loop", "one long call into C", "flood of output"],
)
def test_a_task_that_hangs_is_killed_and_its_place_told(toy: Toy, context: Context, body: str) -> None:
    task = toy(f"import time\ndef run(seed):\n    {body}")
    outcome = supervise(task, Limits(seconds=0.4), context=context)
    assert str(outcome.error).startswith("took longer than 0.4 s and was killed")
    assert 'toy-method.py", line 5 in run' in str(outcome.traceback)
    assert outcome.seconds < 5


@pytest.mark.parametrize(
    "body",
    [
        "held = []\n    while True: held.append(b'x' * 20_000_000); time.sleep(0.005)",
        "held = b'x' * 3_000_000_000\n    time.sleep(60)",
        "subprocess.run([sys.executable, '-c', 'held = 1_000_000_000 * b\"x\"; input()'], stdin=-1)",
    ],
    ids=["bit by bit", "at once", "in another process"],
)
def test_a_task_that_eats_memory_is_killed(toy: Toy, context: Context, body: str) -> None:
    task = toy(f"import subprocess, sys, time\ndef run(seed):\n    {body}")
    outcome = supervise(task, Limits(seconds=20, memory_mb=600), context=context)
    assert re.match(r"used \d+ MB of memory, more than the 600 MB allowed, and was killed", str(outcome.error))
    assert 600 < outcome.memory_mb < 2500
    assert "in run" in str(outcome.traceback)


def test_a_stopped_task_ends_at_once(toy: Toy, context: Context) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    outcome = supervise(toy("import time\ndef run(seed): time.sleep(60)"), LIMITS, stop, context)
    assert outcome.error == STOPPED
    assert outcome.seconds < 2


# No process is left


@pytest.mark.parametrize("ending", ["return Result({})", "os._exit(3)", "time.sleep(60)"])
def test_what_a_task_started_ends_with_it(
    toy: Toy, context: Context, tmp_path: Path, wait_until: Callable[..., bool], ending: str
) -> None:
    source = f"""
        import os, subprocess, time
        def run(seed):
            other = subprocess.Popen(["sleep", "60"])
            open({str(tmp_path / "pid")!r}, "w").write(str(other.pid))
            {ending}
    """
    supervise(toy(source), Limits(seconds=0.5), context=context)
    pid = int((tmp_path / "pid").read_text())
    assert wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")


def test_a_supervisor_that_is_killed_leaves_no_process(
    toy: Toy, script: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., bool]
) -> None:
    ready = tmp_path / "ready"
    task = toy(f"""
        import subprocess, time
        def run(seed):
            subprocess.Popen(["sleep", "60"])
            open({str(ready)!r}, "w").close()
            while True: time.sleep(0.01)
    """)
    program = script(f"""
        from pathlib import Path
        from genai_kb.runner import Limits, Task, start_context, supervise
        task = Task("toy-method", 1, Path({str(task.file)!r}), Path({str(task.root)!r}))
        supervise(task, Limits(), context=start_context([]))
    """)
    assert wait_until(ready.exists)
    assert len(program.family()) >= 4  # the program, the fork server, the child and what it started
    os.kill(program.process.pid, signal.SIGKILL)
    assert wait_until(lambda: not program.family())


def test_children_do_not_run_the_main_module_again(toy: Toy, script: Callable[..., Any]) -> None:
    task = toy("def run(seed): return Result({'m': 1.0})")
    program = script(f"""
        from pathlib import Path
        from genai_kb.runner import Limits, Task, start_context, supervise
        print("main module")
        task = Task("toy-method", 1, Path({str(task.file)!r}), Path({str(task.root)!r}))
        print(supervise(task, Limits(), context=start_context([])).metrics)
    """)
    assert program.process.communicate(timeout=10) == ("main module\n{'m': 1.0}\n", "")


def test_files_may_be_named_from_the_working_directory(
    toy: Toy, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = toy("def run(seed): raise ValueError('boom')")
    monkeypatch.chdir(task.root)
    relative = replace(task, file=task.file.relative_to(task.root), root=Path())
    assert "raised ValueError (toy-method.py:3): boom" in str(supervise(relative, LIMITS, context=context).error)


def test_a_child_does_not_hear_ctrl_c(toy: Toy, context: Context) -> None:
    source = """
        import os, signal
        def run(seed):
            os.kill(os.getpid(), signal.SIGINT)
            return Result({"alive": 1.0})
    """
    assert supervise(toy(source), LIMITS, context=context).ok


def test_a_preload_that_is_not_installed_is_passed_over(toy: Toy) -> None:
    context = start_context(["no_such_module"])
    assert supervise(toy("def run(seed): return Result({})"), LIMITS, context=context).ok


def test_only_the_sources_that_people_read_are_run(toy: Toy, context: Context) -> None:
    """Neither a compiled file with other code, nor a file at the root that is named like a library."""
    task = toy("from reproductions.lab import HOME\nimport colorsys\ndef run(seed): return Result({HOME: 1.0})")
    lab = task.root / "reproductions" / "lab" / "__init__.py"
    source = lab.read_text(encoding="utf-8")
    lab.write_text(source.replace("the toy project", "code that nobody sees"), encoding="utf-8")
    py_compile.compile(str(lab), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    lab.write_text(source, encoding="utf-8")
    (task.root / "colorsys.py").write_text("raise ValueError('not the library')", encoding="utf-8")
    assert supervise(task, LIMITS, context=context).metrics == {"the toy project": 1.0}


def test_a_task_that_starts_too_many_processes_is_killed_with_them(toy: Toy, context: Context) -> None:
    task = toy("import os, time\ndef run(seed):\n    [os.fork() for _ in range(4)]\n    time.sleep(60)")
    outcome = supervise(task, Limits(seconds=30, memory_mb=20_000, processes=8), context=context)
    assert outcome.error is not None
    assert re.match(r"had (9|1\d) processes, more than the 8 allowed, and was killed", outcome.error)
