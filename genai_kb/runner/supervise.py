"""Starts one child process per task, holds it to its limits and says how it ended."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from multiprocessing import connection, resource_tracker
from types import ModuleType
from typing import TYPE_CHECKING, Any

import psutil

from genai_kb.runner import child
from genai_kb.runner.task import Limits, Outcome, Task

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext, SpawnContext
    from threading import Event

    Context = ForkServerContext | SpawnContext

# The second is what torch's optimizers import on their first use, one more second in every child.
PRELOAD = ("torch", "torch._inductor.config")
POLL_SECONDS = 0.05
DUMP_SECONDS = 0.2
KEPT_OUTPUT = 20_000  # bytes
STOPPED = "was stopped"

# multiprocessing keeps its books for one thread: `start` also collects the exit codes of other children,
# and of two threads that read one exit code the second gets 255.
_bookkeeping = threading.Lock()


def start_context(preload: Sequence[str] = PRELOAD) -> Context:
    """Return the way in which children are started, and get it ready.

    Where the system has it, that is one fork server per process, which imports the modules of `preload`
    once: a child with torch then starts in some 15 ms. It passes over modules that are not installed.
    A server that runs already keeps what it has loaded. Elsewhere every child starts from nothing.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    with _bookkeeping:
        context.set_forkserver_preload([child.__name__, *preload])
        resource_tracker.ensure_running()  # a start of its own, which would undo the blocked signal
        with _as_children_need_it():
            forkserver.ensure_running()
    return context


def supervise(task: Task, limits: Limits, stop: Event | None = None, context: Context | None = None) -> Outcome:
    """Run one task in a process of its own. A fault of the task is an outcome, never an exception.

    Args:
        task: what to measure.
        limits: the child and all that it starts are killed when they pass them.
        stop: once set, the child is killed; the outcome's error is then `STOPPED`.
        context: from `start_context`, which is called where it is not given.
    """
    try:
        process = _Child(task, context or start_context())
    except (OSError, EOFError) as error:
        return Outcome(task, error=f"could not start a process ({error!r}); see what was printed above")
    began = time.monotonic()
    try:
        reason = _watch(process, limits, stop or threading.Event())
        answer: dict[str, Any] | None = {"error": reason} if reason else process.answer()
    finally:
        exit_code = process.end()
    if answer is None:
        answer = {"error": _describe_exit(exit_code)}
    return Outcome(
        task,
        metrics=answer.get("metrics"),
        rows=answer.get("rows"),
        seconds=time.monotonic() - began,
        memory_mb=max(process.peak_mb, answer.get("memory_mb", 0.0)),
        error=answer.get("error"),
        traceback=answer.get("traceback") or process.dumped.text() or None,
        output=process.printed.text(),
        processor_seconds=answer.get("processor_seconds", 0.0),
        environment=answer.get("environment", {}),
    )


def _watch(process: _Child, limits: Limits, stop: Event) -> str | None:
    """Wait until the child has answered or ended. Return why it must be ended, if it must."""
    deadline = time.monotonic() + limits.seconds
    while not process.is_done_within(POLL_SECONDS):
        if stop.is_set():
            return STOPPED
        if time.monotonic() > deadline:
            process.dump_stack()
            return f"took longer than {limits.seconds:g} s and was killed; the traceback shows where it was"
        memory = process.memory_mb()
        if process.count > limits.processes:
            process.dump_stack()
            return (
                f"had {process.count} processes, more than the {limits.processes} allowed, "
                "and was killed; the traceback shows where it was"
            )
        if memory > limits.memory_mb:
            process.dump_stack()
            return (
                f"used {memory:.0f} MB of memory, more than the {limits.memory_mb} MB allowed, "
                "and was killed; the traceback shows where it was"
            )
    return None


def _describe_exit(code: int | None) -> str:
    """Say how a process ended that did not answer."""
    if code is None:
        return "lost its process"
    if code >= 0:
        return f"ended with exit code {code} before run() returned; see what it printed"
    name = {known.value: known.name for known in signal.Signals}.get(-code, f"signal {-code}")
    if name == "SIGKILL":
        return f"was killed from outside ({name}); the machine may be short of memory"
    return f"was killed by {name}; see the traceback and what it printed"


class _Child:
    """A running child and the supervisor's ends of its pipes."""

    def __init__(self, task: Task, context: Context) -> None:
        self._answer, answer = context.Pipe(duplex=False)
        printed, output = context.Pipe(duplex=False)
        dumped, dumps = context.Pipe(duplex=False)
        lifeline, self._lifeline = context.Pipe(duplex=False)
        ends = (answer, output, dumps, lifeline)
        self.printed, self.dumped = _Tail(printed), _Tail(dumped)
        self.peak_mb = 0.0
        self.count = 1  # of its processes, at the last look at its memory
        self._process = context.Process(target=child.main, args=(task, *ends))
        with _bookkeeping, _without_main_module():
            self._process.start()
        assert self._process.pid is not None
        self._pid = self._process.pid  # also its process group, since it leads a session of its own
        for end in ends:
            end.close()

    def is_done_within(self, seconds: float) -> bool:
        """Wait for the answer or the end, at most so long, and keep what is printed meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            tails = [tail for tail in (self.printed, self.dumped) if tail.is_open]
            pipes = [self._answer, *(tail.pipe for tail in tails)]
            ready = connection.wait([self._process.sentinel, *pipes], left)
            for tail in tails:
                if tail.pipe in ready:
                    tail.read()
            if self._answer in ready or self._process.sentinel in ready:
                return True
        return False

    def memory_mb(self) -> float:
        """Return the resident memory of the child and all that it started, in MB."""
        used, group = 0, self._group()
        self.count = len(group)
        for pid in group:
            with suppress(psutil.Error):
                used += psutil.Process(pid).memory_info().rss
        self.peak_mb = max(self.peak_mb, used / 10**6)
        return used / 10**6

    def dump_stack(self) -> None:
        """Ask the child where it stands; its handler answers even from within a long call into C."""
        if sys.platform == "win32":
            return
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGUSR1)
        patience = DUMP_SECONDS
        while self.dumped.is_open and connection.wait([self.dumped.pipe], patience):
            self.dumped.read()
            patience = DUMP_SECONDS / 10

    def answer(self) -> dict[str, Any] | None:
        """Return what the child sent; None where it ended without a word."""
        with suppress(EOFError, OSError):
            if self._answer.poll():
                answer: dict[str, Any] = json.loads(self._answer.recv_bytes())
                return answer
        return None

    def end(self) -> int | None:
        """Kill what is left of the child's group and return the child's exit code."""
        if sys.platform == "win32":
            for pid in self._group():
                with suppress(psutil.Error):
                    psutil.Process(pid).kill()
        else:
            with suppress(ProcessLookupError, PermissionError):  # macOS: no permission to kill a zombie
                os.killpg(self._pid, signal.SIGKILL)
        with _bookkeeping:
            if self._process.exitcode is None:
                self._process.kill()
        connection.wait([self._process.sentinel], timeout=5)
        for tail in (self.printed, self.dumped):
            while tail.is_open and tail.pipe.poll():
                tail.read()
            tail.pipe.close()
        self._answer.close()
        self._lifeline.close()
        with _bookkeeping:
            code = self._process.exitcode
            if code is not None:
                self._process.close()
        return code

    def _group(self) -> list[int]:
        """Return the ids of the child's processes."""
        if sys.platform == "win32":
            with suppress(psutil.Error):
                return [self._pid, *(p.pid for p in psutil.Process(self._pid).children(recursive=True))]
            return []
        return [pid for pid in psutil.pids() if _group_of(pid) == self._pid]


class _Tail:
    """The end of what comes through a pipe; what came before is let go."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.is_open = sys.platform != "win32"  # nothing is sent through it there
        self._kept = b""

    def read(self) -> None:
        """Read what is there. Call it when the pipe is ready."""
        piece = os.read(self.pipe.fileno(), 65536)
        self.is_open = bool(piece)
        self._kept = (self._kept + piece)[-KEPT_OUTPUT:]

    def text(self) -> str:
        """Return what was kept."""
        return self._kept.decode(errors="replace")


def _group_of(pid: int) -> int | None:
    """Return the process group of a process, None where it is gone or none of ours."""
    with suppress(OSError):
        return os.getpgid(pid)
    return None


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Hide the main module: multiprocessing would import it into each child, which needs nothing of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _as_children_need_it() -> Iterator[None]:
    """Hold this process, for a moment, in the state that the fork server is to inherit from it.

    Its libraries read the variables when they are loaded. Ctrl-C, which a terminal sends to the server
    too, would end it with a traceback while it still imports torch.
    """
    before = {name: os.environ.get(name) for name in child.ENVIRONMENT}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(child.ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
