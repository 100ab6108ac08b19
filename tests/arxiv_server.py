"""A server on loopback that speaks arXiv's Atom API, and misbehaves as told."""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Answer = Callable[["Handler", bytes], None]

FEED = """\
<?xml version='1.0' encoding='UTF-8'?>
<feed xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/" xmlns:arxiv="http://arxiv.org/schemas/atom" \
xmlns="http://www.w3.org/2005/Atom">
  <id>https://arxiv.org/api/query-result</id>
  <title>arXiv Query: id_list=</title>
  <updated>2026-11-28T00:00:00Z</updated>
  <opensearch:itemsPerPage>{total}</opensearch:itemsPerPage>
  <opensearch:totalResults>{total}</opensearch:totalResults>
  <opensearch:startIndex>{start}</opensearch:startIndex>
{entries}</feed>
"""


@dataclass
class Entry:
    """A paper as the server tells of it."""

    id: str
    version: int = 1
    title: str = "Throwing Darts at Circles"
    authors: tuple[str, ...] = ("Łucía Núñez", "Per Ødegård")
    published: str = "2021-01-04T18:59:59Z"
    comment: str | None = None
    summary: str = "We throw darts."
    journal_ref: str | None = None
    doi: str | None = None

    def xml(self) -> str:
        """The Atom entry, hard-wrapped titles and all."""
        authors = "".join(f"<author><name>{escape(name)}</name></author>" for name in self.authors)
        more = {"comment": self.comment, "journal_ref": self.journal_ref, "doi": self.doi}
        extension = "".join(f"<arxiv:{k}>{escape(v)}</arxiv:{k}>" for k, v in more.items() if v)
        return (
            f"  <entry><id>http://arxiv.org/abs/{self.id}v{self.version}</id><title>{escape(self.title)}</title>"
            f"<updated>2024-02-02T10:00:00Z</updated><published>{self.published}</published>"
            f"<summary>{escape(self.summary)}</summary>{authors}{extension}"
            f'<link href="https://arxiv.org/abs/{self.id}v{self.version}" rel="alternate" type="text/html"/>'
            f'<category term="cs.LG" scheme="http://arxiv.org/schemas/atom"/></entry>\n'
        )


def feed(entries: list[Entry], start: int = 0, total: int | None = None) -> bytes:
    """A page of results."""
    text = FEED.format(
        start=start, total=len(entries) if total is None else total, entries="".join(e.xml() for e in entries)
    )
    return text.encode()


def error_feed(summary: str = "incorrect id format for x") -> bytes:
    """What arXiv answers to a query that it does not understand."""
    entry = (
        "<entry><id>http://arxiv.org/api/errors#incorrect_id_format</id><title>Error</title>"
        f"<summary>{summary}</summary><updated>2026-11-28T00:00:00Z</updated><published>2026-11-28T00:00:00Z</published>"
        "<author><name>arXiv api core</name></author></entry>\n"
    )
    return FEED.format(start=0, total=1, entries=entry).encode()


@dataclass
class FakeArxiv:
    """What the server has and how it behaves.

    Attributes:
        papers: what it knows, by id.
        script: how to answer the next requests, first one first; None answers well, as do all later ones.
        refused: ids for which it refuses a whole query.
        requests: time and ids of each request so far.
        connections: how many were opened.
    """

    url: str = ""
    papers: dict[str, Entry] = field(default_factory=dict)
    script: list[Answer | None] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    requests: list[tuple[float, list[str]]] = field(default_factory=list)
    connections: int = 0
    done: Event = field(default_factory=Event)

    def add(self, *entries: Entry) -> None:
        """Let it know papers."""
        self.papers |= {entry.id: entry for entry in entries}

    @property
    def asked(self) -> list[list[str]]:
        """The ids of each request."""
        return [ids for _, ids in self.requests]


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, which loopback answers at once
    fake: FakeArxiv

    def setup(self) -> None:
        super().setup()
        self.fake.connections += 1

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        start, most = int(query["start"][0]), int(query["max_results"][0])
        ids = query.get("id_list", [""])[0].split(",")
        self.fake.requests.append((time.monotonic(), ids))
        found = [self.fake.papers[wanted] for wanted in reversed(ids) if wanted in self.fake.papers]  # in its own order
        answer = self.fake.script.pop(0) if self.fake.script else None
        if answer:
            answer(self, feed(found[start : start + most], start, len(found)))
        elif self.fake.refused & set(ids):
            self.reply(400, error_feed())
        else:
            self.reply(200, feed(found[start : start + most], start, len(found)))

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        """Send an answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def cut(self) -> None:
        """Break the connection off."""
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Keep quiet."""


def status(code: int, **headers: str) -> Answer:
    """Answer with a status and nothing in it."""
    return lambda handler, _: handler.reply(code, b"Rate exceeded.", **headers)


def body(content: bytes) -> Answer:
    """Answer well, with another body."""
    return lambda handler, _: handler.reply(200, content)


def hang(handler: Handler, _: bytes) -> None:
    """Answer nothing at all."""
    handler.fake.done.wait(20)
    handler.close_connection = True


def hang_midway(handler: Handler, whole: bytes) -> None:
    """Send a part, then nothing."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(whole)))
    handler.end_headers()
    handler.wfile.write(whole[:200])
    handler.wfile.flush()
    hang(handler, whole)


def drip(handler: Handler, whole: bytes) -> None:
    """Send a byte now and then."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(whole)))
    handler.end_headers()
    try:
        for byte in whole:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            if handler.fake.done.wait(0.05):
                break
    except OSError:
        pass
    handler.close_connection = True


def cut_before(handler: Handler, _: bytes) -> None:
    """Break off before the answer."""
    handler.cut()


def cut_midway(handler: Handler, whole: bytes) -> None:
    """Break off within an answer whose length was told."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(whole)))
    handler.end_headers()
    handler.wfile.write(whole[: len(whole) // 2])
    handler.wfile.flush()
    handler.cut()


def truncated(handler: Handler, whole: bytes) -> None:
    """Send a part as if it were all."""
    handler.reply(200, whole[: whole.rindex(b"<entry>") + 60])


@contextmanager
def serving() -> Iterator[FakeArxiv]:
    """A server on a free port of this machine."""
    fake = FakeArxiv()
    handler = type("BoundHandler", (Handler,), {"fake": fake})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        fake.url = f"http://127.0.0.1:{server.server_address[1]}/api/query"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield fake
        finally:
            fake.done.set()
            server.shutdown()
            thread.join()
