"""Build the website in both languages, and serve it on this machine.

    docs/, roadmap/, reproductions/  ->  MkDocs, once per language  ->  Pagefind  ->  site/

The new site is made beside the old one and takes its place when it is whole.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from genai_kb.models import LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

_PORTS_TRIED = 20

# Signs of permalinks, code and rows of numbers are no answer to a search.
_NOT_INDEXED = ".headerlink, .highlight, .kb-table, .kb-meta"


class BuildError(Exception):
    """The site could not be built or served; the message says why and shows what the tool printed."""


def build_site(root: Path, out: Path) -> None:
    """Build the site of a project, replacing what is at `out` only once all of it is there.

    Args:
        root: the project's folder, which holds mkdocs.yml.
        out: the site's folder; it is made where there is none.

    Raises:
        BuildError: a tool is not installed or failed, or `out` holds something that is no site.
    """
    _check_replaceable(root, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        new = Path(folder) / "new"
        shutil.copytree(root / "docs" / "root", new)
        with _stopped_on_error([_start_mkdocs(root, new / code, code) for code in LANGUAGES]) as builds:
            for code, process in zip(LANGUAGES, builds, strict=True):
                _finish(process, f"MkDocs, language {code}")
        command = [sys.executable, "-m", "pagefind", "--site", str(new), "--exclude-selectors", _NOT_INDEXED]
        _finish(_start(command, root, {}), "Pagefind")
        if out.exists():
            out.rename(Path(folder) / "old")
        new.rename(out)


def serve_site(out: Path, port: int) -> None:
    """Serve a built site on this machine until Ctrl-C, on the next free port if `port` is taken.

    Raises:
        BuildError: there is no site at `out`, or none of the next ports is free.
    """
    if not (out / "index.html").is_file():
        raise BuildError(f"there is no site in {out}; build it with `genai-kb site build`")
    with _server(out, port) as server:
        print(f"Serving the site at http://127.0.0.1:{server.server_port}/ (Ctrl-C stops)", flush=True)  # noqa: T201
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()  # noqa: T201 - the terminal shows ^C on this line


class _Handler(SimpleHTTPRequestHandler):
    """Serves a folder quietly, with the types that browsers insist on and the site's own 404 page."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".svg": "image/svg+xml",
        ".wasm": "application/wasm",
        ".woff2": "font/woff2",
    }

    def log_message(self, *_arguments: object) -> None:
        """Print no line per request."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send the site's own page where there is none at the address."""
        page = Path(self.directory) / "404.html"
        if code != 404 or not page.is_file():
            super().send_error(code, message, explain)
            return
        body = page.read_bytes()
        self.send_response(404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def end_headers(self) -> None:
        """Let the browser ask again each time, since a rebuilt site keeps its addresses."""
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()


class _Server(ThreadingHTTPServer):
    """A server that a browser may leave in the middle of an answer."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of any error but a lost connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _check_replaceable(root: Path, out: Path) -> None:
    """Refuse a folder that holds something else: building removes what is there."""
    if root.resolve().is_relative_to(out.resolve()):
        raise BuildError(f"{out} holds the project itself; choose another folder for the site")
    if out.exists() and not (out / "pagefind").is_dir() and (out.is_file() or any(out.iterdir())):
        raise BuildError(f"{out} exists and is no site; remove it or choose another folder")


def _start_mkdocs(root: Path, folder: Path, language: str) -> subprocess.Popen[str]:
    # Not -q, which would also hide the warnings that strict mode turns into a failure.
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(root / "mkdocs.yml")]
    command += ["-d", str(folder.resolve())]
    return _start(command, root, {"GENAI_KB_LANGUAGE": language, "NO_MKDOCS_2_WARNING": "1"})


def _start(command: list[str], root: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - the commands are this module's own
        command,
        cwd=root,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


def _finish(process: subprocess.Popen[str], name: str) -> None:
    output, _ = process.communicate()
    if process.returncode:
        advice = '\nThe site needs its tools: pip install -e ".[site]"' if "No module named" in output else ""
        raise BuildError(f"{name} failed (exit code {process.returncode}):\n{output.strip()}{advice}")


@contextmanager
def _stopped_on_error(processes: list[subprocess.Popen[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Leave no process behind when one of them fails or Ctrl-C comes."""
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def _server(out: Path, port: int) -> ThreadingHTTPServer:
    handler = partial(_Handler, directory=str(out))
    for candidate in range(port, min(port + _PORTS_TRIED, 65536)):
        try:
            return _Server(("127.0.0.1", candidate), handler)
        except OSError:
            continue
    raise BuildError(f"no free port from {port} on; choose another with --port")
