"""A hostile pull request, judged as the workflow judges it: what it tries fails, and nothing of it stays.

The commands are those of .github/workflows/pull-request.yml, on the fabricated project. They need root, which
the workflow gets from sudo, and a Python that every user may run.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.roadmap import RECORD, ROOT, Project

if TYPE_CHECKING:
    from collections.abc import Iterator

SANDBOX = ROOT / ".ci" / "sandbox"
NOBODY = 65534
DARTS_CODE = "reproductions/estimation/areas/dartboard.py"
DARTS = "hits = sum("


def sandboxed(out: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the workflow does."""
    return subprocess.run(
        [str(SANDBOX), str(out), *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )


def _usable_python() -> str | None:
    """A Python of this version that `nobody` may run; None where the sandbox cannot be made."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return None
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        for python in (sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"):
            if sandboxed(Path(folder), python, "-c", "pass").returncode == 0:
                return python
    return None


PYTHON = _usable_python()
pytestmark = pytest.mark.skipif(PYTHON is None, reason="the sandbox needs root on Linux and a Python for all users")


@dataclass(frozen=True)
class PullRequest:
    """A branch of the fabricated project and what the workflow makes of it."""

    folder: Path
    project: Project

    def judge(self) -> tuple[int, str, str]:
        """Merge it, fetch it with one commit below, and check it; return exit code, what was printed, and the summary."""
        merged, out = self.folder / "pull-request", self.folder / "out"
        self.project.commit()
        self.project.git("checkout", "--quiet", "main")
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
        self.project.git(*identity, "merge", "--quiet", "--no-ff", "--message=Merge", "contribution")
        source = self.project.root.as_uri()
        subprocess.run(["git", "clone", "--quiet", "--depth=2", source, str(merged)], check=True)
        judge = "from genai_kb.cli import main; main()"
        path = f"PYTHONPATH={ROOT}:{sysconfig.get_path('purelib')}"
        check = ["check", "--changed", "--base", "HEAD^1", "--format", "github", "--timeout", "5", "--jobs", "2"]
        done = sandboxed(
            out,
            *("env", path, str(PYTHON), "-c", judge, "--root", str(merged)),
            *(*check, "--summary", str(out / "summary.md")),
            GITHUB_ENV=str(self.folder / "github-env"),
        )
        assert "Traceback (most recent call last)" not in done.stderr.split("seed 0:")[0], done.stderr
        return done.returncode, done.stdout + done.stderr, (out / "summary.md").read_text(encoding="utf-8")


@pytest.fixture
def pull_request(committed_project: Project) -> Iterator[PullRequest]:
    """A pull request that changes nothing yet, in a folder that every user may enter."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="genai-kb-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        project = Project(shutil.copytree(committed_project.root, folder / "author"))
        project.git("checkout", "--quiet", "-b", "contribution")
        yield PullRequest(folder, project)


@pytest.fixture
def listener() -> Iterator[tuple[str, int]]:
    """An address of this machine that answers to whoever can reach it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept(), daemon=True).start()  # noqa: PLW0108 - it may be closed
        yield server.getsockname()
        with socket.create_connection(server.getsockname()):  # let the thread end; it was never reached
            pass


def test_an_honest_pull_request_passes(pull_request: PullRequest) -> None:
    pull_request.project.replace(DARTS_CODE, "darts: int = 500", "darts: int = 600")
    code, printed, summary = pull_request.judge()
    assert code == 0, printed
    assert "dartboard · pilot seeds 0, 1, 2" in printed
    assert "### <code>dartboard</code>" in summary


def test_code_that_gets_past_the_lint_reaches_nothing(pull_request: PullRequest, listener: tuple[str, int]) -> None:
    """Through a library's own imports a reproduction gets at everything that Python has; the sandbox holds it."""
    places = [ROOT / "made", pull_request.folder / "made", pull_request.folder / "pull-request" / "made"]
    attempts = f"""import random
    system = random._os
    reached = []
    for place in {[str(place) for place in places]!r} + ["/tmp/made-by-a-test", "/etc/made"]:
        try:
            system.close(getattr(system, "op" + "en")(place, system.O_CREAT | system.O_WRONLY))
            reached.append(place)
        except OSError:
            pass
    try:
        system.sys.modules["socket"].create_connection({listener!r}, 2)
        reached.append("network")
    except OSError:
        pass
    reached += [name for name in system.environ if name.startswith("GITHUB")]
    reached += ["root"] if system.getuid() == 0 else []
    raise ValueError(f"reached {{reached}}")
    """
    pull_request.project.replace(DARTS_CODE, DARTS, attempts + DARTS)
    code, printed, _ = pull_request.judge()
    assert code == 1
    assert "raised ValueError (dartboard.py" in printed
    assert "reached []" in printed
    assert not [place for place in places if place.exists()]


def test_processes_that_leave_their_group_end_with_the_sandbox(pull_request: PullRequest) -> None:
    flood = """import random
    system = random._os
    for _ in range(1000):
        try:
            if system.fork() == 0:
                system.setsid()
                while True:
                    system.sys.modules["time"].sleep(1)
        except OSError:
            break
    """
    pull_request.project.replace(DARTS_CODE, DARTS, flood + DARTS)
    code, _, _ = pull_request.judge()
    left = [process for process in psutil.process_iter() if process.uids().real == NOBODY]
    assert code in {0, 1}
    assert left == []


def test_a_pull_request_does_not_edit_its_judge(pull_request: PullRequest) -> None:
    project, evil = pull_request.project, "import os\nos.makedirs(os.environ['HOME'] + '/judged')\nos._exit(0)\n"
    names = ["genai_kb/__init__.py", "genai_kb/cli.py", "torch.py", "psutil.py", "sitecustomize.py", "conftest.py"]
    for name in [*names, "setup.py", "reproductions/lab/statistics.py"]:
        project.write(name, evil)
    project.write("Makefile", "check:\n\ttrue\n")
    project.replace("roadmap/reading/overviews/guess-book.yaml", "tags: [history]", "tags: [histery]")
    record = json.loads(project.read(RECORD))
    for seed in record["seeds"].values():
        seed["metrics"]["gain"] = 7.0
    project.write(RECORD, json.dumps(record))
    code, printed, summary = pull_request.judge()
    assert code == 1
    assert "unknown tag 'histery'" in printed
    assert "claim median-wins comes out not reproduced here, the record says reproduced" in printed
    assert not (pull_request.folder / "out" / "judged").exists()
    for name in [*names, "Makefile"]:
        assert name.replace("_", "&#95;") in summary


def test_a_summary_is_no_way_to_read_other_files(pull_request: PullRequest) -> None:
    """A reproduction may write into the sandbox's folder; the workflow shows no link that stands there."""
    workflow = (ROOT / ".github" / "workflows" / "pull-request.yml").read_text(encoding="utf-8")
    shown = workflow.split("summary=/srv/kb/out/summary.md\n")[1].split("\n\n")[0]
    out, secret = pull_request.folder / "out", pull_request.folder / "secret"
    out.mkdir()
    secret.write_text("secret", encoding="utf-8")
    summary, target = out / "summary.md", pull_request.folder / "step-summary"
    target.touch()
    for place in (lambda: summary.symlink_to(secret), lambda: summary.write_text("table", encoding="utf-8")):
        summary.unlink(missing_ok=True)
        place()
        environment = os.environ | {"summary": str(summary), "GITHUB_STEP_SUMMARY": str(target)}
        subprocess.run(["bash", "-euc", shown], env=environment, check=True)
    assert target.read_text(encoding="utf-8") == "table"
