"""Runs reproductions: one child process per seed, held to its time and memory, many side by side."""

from genai_kb.runner.pool import Batch, default_jobs, run_tasks
from genai_kb.runner.supervise import STOPPED, start_context, supervise
from genai_kb.runner.task import Limits, Outcome, Task

__all__ = [
    "STOPPED",
    "Batch",
    "Limits",
    "Outcome",
    "Task",
    "default_jobs",
    "run_tasks",
    "start_context",
    "supervise",
]
