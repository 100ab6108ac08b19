"""Runs many tasks side by side and keeps what is finished when it is interrupted."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from genai_kb.runner.supervise import STOPPED, supervise
from genai_kb.runner.task import Limits, Outcome, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from threading import Event

LOOK_SECONDS = 0.2  # between two looks at whether Ctrl-C was pressed
STOP_SECONDS = 1.0  # given to running tasks to say that they were stopped


@dataclass(frozen=True)
class Batch:
    """How a batch of tasks ended.

    Attributes:
        outcomes: one per task, in the order of the tasks; an unfinished one has the error `STOPPED`.
        interrupted: Ctrl-C was pressed before all were finished.
    """

    outcomes: list[Outcome]
    interrupted: bool


def default_jobs() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_tasks(
    tasks: Sequence[Task],
    limits: Limits,
    *,
    jobs: int | None = None,
    executor: Executor | None = None,
    on_start: Callable[[Task], object] = lambda _: None,
    on_done: Callable[[Outcome], object] = lambda _: None,
) -> Batch:
    """Run tasks side by side, at most `jobs` at a time. A failed task disturbs no other.

    On Ctrl-C running tasks are stopped, no other is started, and the batch comes back; a second Ctrl-C
    raises KeyboardInterrupt as usual. An `executor` of another process or machine cannot be told to stop:
    what runs there goes on to its limits and is not waited for.

    Args:
        tasks: what to run; they are started in this order.
        limits: for each task.
        jobs: for an `executor`, the number of its workers; `default_jobs()` where not given.
        executor: where the supervisors run, threads of this process where not given.
        on_start: called in this thread when a task is handed out.
        on_done: called in this thread once for each task that was handed out.
    """
    jobs = jobs or default_jobs()
    stop = threading.Event()
    with ThreadPoolExecutor(jobs) as threads:
        workers = threads if executor is None else executor
        measure = partial(supervise, limits=limits, stop=stop if executor is None else None)
        try:
            with _ctrl_c_sets(stop):
                outcomes = _hand_out(tasks, lambda task: workers.submit(measure, task), jobs, stop, on_start, on_done)
                return Batch(outcomes, interrupted=stop.is_set())
        finally:
            stop.set()  # where a callback raised, children still run


def _hand_out(
    tasks: Sequence[Task],
    submit: Callable[[Task], Future[Outcome]],
    jobs: int,
    stop: Event,
    on_start: Callable[[Task], object],
    on_done: Callable[[Outcome], object],
) -> list[Outcome]:
    """Keep `jobs` tasks running until all are done or `stop` is set; return the outcomes in order."""
    outcomes = [Outcome(task, error=STOPPED) for task in tasks]
    waiting = deque(range(len(tasks)))
    running: dict[Future[Outcome], int] = {}
    while (waiting or running) and not stop.is_set():
        while waiting and len(running) < jobs:
            number = waiting.popleft()
            on_start(tasks[number])
            running[submit(tasks[number])] = number
        for future in wait(running, LOOK_SECONDS, FIRST_COMPLETED).done:
            number = running.pop(future)
            outcomes[number] = _outcome(future, tasks[number])
            on_done(outcomes[number])
    finished = wait(running, STOP_SECONDS).done
    for future, number in running.items():
        if future in finished:
            outcomes[number] = _outcome(future, tasks[number])
        else:
            future.cancel()
        on_done(outcomes[number])
    return outcomes


def _outcome(future: Future[Outcome], task: Task) -> Outcome:
    """Return a finished future's outcome, also where its worker died."""
    try:
        return future.result()
    except Exception as error:  # noqa: BLE001 - executors raise what they like when they lose a worker
        return Outcome(task, error=f"lost its worker: {type(error).__name__}: {error}")


@contextmanager
def _ctrl_c_sets(stop: Event) -> Iterator[None]:
    """Let the first Ctrl-C set an event in place of raising; only the main thread receives it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        stop.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
