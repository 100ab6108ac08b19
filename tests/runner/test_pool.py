from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from genai_kb.runner import STOPPED, Limits, Outcome, Task, run_tasks, start_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Toy = Callable[..., Task]

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="is about signals and process groups"),
    pytest.mark.usefixtures("context"),
]

LIMITS = Limits(seconds=20)
BY_SEED = """
    import os, time
    def run(seed):
        if seed == 2: os._exit(7)
        if seed == 3: raise ValueError("boom")
        if seed == 4: time.sleep(60)
        time.sleep(0.2 if seed == 1 else 0)
        return Result({"seed": seed})
"""


def seeds(task: Task, *numbers: int) -> list[Task]:
    return [replace(task, seed=number) for number in numbers]


def metrics(outcomes: list[Outcome]) -> list[dict[str, float] | None]:
    return [outcome.metrics for outcome in outcomes]


def test_outcomes_stand_in_the_order_of_the_tasks(toy: Toy) -> None:
    tasks = seeds(toy(BY_SEED), 1, 5, 6)  # the first is the slowest
    batch = run_tasks(tasks, LIMITS, jobs=3)
    assert metrics(batch.outcomes) == [{"seed": 1.0}, {"seed": 5.0}, {"seed": 6.0}]
    assert not batch.interrupted


def test_a_failed_task_disturbs_no_other(toy: Toy) -> None:
    batch = run_tasks(seeds(toy(BY_SEED), 2, 1, 3, 4, 5), Limits(seconds=1.5), jobs=2)
    assert metrics(batch.outcomes) == [None, {"seed": 1.0}, None, None, {"seed": 5.0}]
    errors = [str(outcome.error).split()[:2] for outcome in batch.outcomes if not outcome.ok]
    assert errors == [["ended", "with"], ["raised", "ValueError"], ["took", "longer"]]


def test_no_more_tasks_run_at_once_than_asked_for(toy: Toy) -> None:
    running: set[int] = set()
    most = 0

    def on_start(task: Task) -> None:
        nonlocal most
        running.add(task.seed)
        most = max(most, len(running))

    run_tasks(
        seeds(toy(BY_SEED), 5, 6, 7, 8, 9),
        LIMITS,
        jobs=2,
        on_start=on_start,
        on_done=lambda outcome: running.remove(outcome.task.seed),
    )
    assert most == 2
    assert not running


def test_progress_is_told_in_the_callers_thread(toy: Toy) -> None:
    threads = set()
    told: list[str] = []

    def note(what: str) -> None:
        told.append(what)
        threads.add(threading.get_ident())

    run_tasks(
        seeds(toy(BY_SEED), 5, 3),
        LIMITS,
        jobs=1,
        on_start=lambda task: note(f"{task.seed} starts"),
        on_done=lambda outcome: note(f"{outcome.task.seed} {'ok' if outcome.ok else 'failed'}"),
    )
    assert told == ["5 starts", "5 ok", "3 starts", "3 failed"]
    assert threads == {threading.get_ident()}


def test_a_callback_that_raises_stops_what_runs(toy: Toy) -> None:
    def give_up(_outcome: Outcome) -> None:
        raise RuntimeError("disk full")

    began = time.monotonic()
    with pytest.raises(RuntimeError, match="disk full"):
        run_tasks(seeds(toy(BY_SEED), 4, 5), LIMITS, jobs=2, on_done=give_up)
    assert time.monotonic() - began < 3


def test_supervisors_may_run_in_other_processes(toy: Toy) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=start_context, initargs=([],)) as executor:
        batch = run_tasks(seeds(toy(BY_SEED), 5, 3), LIMITS, executor=executor, jobs=1)
    assert batch.outcomes[0].metrics == {"seed": 5.0}
    assert "raised ValueError" in str(batch.outcomes[1].error)


def test_a_lost_worker_is_a_failed_task(toy: Toy) -> None:
    class LosesWorkers(Executor):
        def submit(self, _fn: Any, /, *_args: Any, **_kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(ConnectionError("worker 3 is gone"))
            return future

    batch = run_tasks(seeds(toy(BY_SEED), 5, 6), LIMITS, executor=LosesWorkers(), jobs=2)
    assert [outcome.error for outcome in batch.outcomes] == ["lost its worker: ConnectionError: worker 3 is gone"] * 2


def test_ctrl_c_keeps_what_is_finished(
    toy: Toy, script: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., bool]
) -> None:
    ready = tmp_path / "ready"
    task = toy(f"""
        import time
        def run(seed):
            if seed == 2:
                open({str(ready)!r}, "w").close()
                time.sleep(60)
            return Result({{"seed": seed}})
    """)
    program = script(f"""
        import json
        from pathlib import Path
        from genai_kb.runner import Limits, Task, run_tasks, start_context

        start_context([])
        tasks = [Task("toy-method", seed, Path({str(task.file)!r}), Path({str(task.root)!r}))
                 for seed in (1, 2, 3)]
        batch = run_tasks(tasks, Limits(), jobs=1)
        print(json.dumps([batch.interrupted, [[o.metrics, o.error] for o in batch.outcomes]]))
    """)
    assert wait_until(ready.exists)
    pressed = time.monotonic()
    os.killpg(program.process.pid, signal.SIGINT)  # as a terminal does, to the fork server too
    output, errors = program.process.communicate(timeout=10)
    assert time.monotonic() - pressed < 2
    assert json.loads(output) == [True, [[{"seed": 1.0}, None], [None, STOPPED], [None, STOPPED]]]
    assert errors == ""
    assert wait_until(lambda: not program.family())


def test_ctrl_c_while_the_fork_server_loads_is_as_clean(
    toy: Toy, script: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., bool]
) -> None:
    task = toy("def run(seed): return Result({})")
    loading = tmp_path / "loading"
    (tmp_path / "slow_module.py").write_text(
        f"import time\nopen({str(loading)!r}, 'w').close()\ntime.sleep(0.5)\n", encoding="utf-8"
    )
    program = script(f"""
        import os
        from pathlib import Path
        from genai_kb.runner import Limits, Task, run_tasks, start_context

        os.environ["PYTHONPATH"] += os.pathsep + {str(tmp_path)!r}
        start_context(["slow_module"])
        task = Task("toy-method", 1, Path({str(task.file)!r}), Path({str(task.root)!r}))
        print(run_tasks([task], Limits(), jobs=1).interrupted)
    """)
    assert wait_until(loading.exists)
    time.sleep(0.1)  # for the program to go on into run_tasks
    os.killpg(program.process.pid, signal.SIGINT)
    assert program.process.communicate(timeout=10) == ("True\n", "")
