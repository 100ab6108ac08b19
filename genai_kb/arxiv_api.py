"""Asking arXiv for papers, slowly and patiently.

The package `arxiv` writes the queries and reads the feeds. What it leaves open is done here, in the one adapter
through which all its requests go: at most one request in three seconds over one connection, as arXiv's terms of use
ask; time-outs; further tries that wait as long as arXiv says; and no feed that was cut off counts as a whole one.
"""

from __future__ import annotations

import io
import logging
import os
import re
import time
import unicodedata
from dataclasses import dataclass
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from xml.parsers import expat

import arxiv
import requests
import urllib3
from requests.adapters import HTTPAdapter

from genai_kb.text import forbidden_characters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from requests import PreparedRequest, Response

URL = "https://export.arxiv.org/api/query"
PACE = 3.0  # seconds, from arXiv's terms of use of its API
BATCH = 100  # ids in one request; a query is an address, which must not grow too long
TRIES = 5
MAX_WAIT = 120.0  # seconds; whoever is told to wait longer rather comes back later
MAX_BYTES = 16_000_000  # a feed of 100 papers with their abstracts has about 300 kB
MAX_REFUSALS = 30  # requests that arXiv may refuse before something else than an id is wrong

_BUSY = frozenset({429, 500, 502, 503, 504})
_ID = re.compile(r"(?P<id>\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})(?:v(?P<version>[1-9]\d*))?")
_AROUND_ID = re.compile(
    r"^(?:arxiv:|https?://(?:www\.|export\.)?arxiv\.org/(?:abs|pdf|html)/)|(?:\.pdf)?/?$", re.IGNORECASE
)
_WITHDRAWN = re.compile(
    r"^\W*(?:withdrawn\b|(?:(?:this|the)\s+)?(?:paper|article|manuscript|preprint|submission|version|work)\s+"
    r"(?:has\s+been|is|was)\s+(?:\w+\s+)?withdrawn\b)",
    re.IGNORECASE,
)


_OBSTACLES = {  # the special before the general
    requests.exceptions.ProxyError: "the proxy does not let it through.",
    requests.exceptions.SSLError: "its certificate cannot be checked.",
    requests.ConnectTimeout: "it does not answer.",
    urllib3.exceptions.NameResolutionError: "its name cannot be looked up; is there a connection?",
    urllib3.exceptions.NewConnectionError: "no connection is accepted.",
}


class ArxivError(Exception):
    """arXiv did not give what was asked for; the text says so in one line."""


class UnreachableError(ArxivError):
    """There is no way to arXiv from here, most likely no connection at all."""


@dataclass(frozen=True)
class Paper:
    """What arXiv says of a paper's latest version.

    Attributes:
        id: without a version, as arXiv writes it today: old-style ids have no subject class.
        version: number of the latest version, from 1.
        title: in one line; formulas and accents as the authors typed them, TeX included.
        authors: full names in reading order.
        published: day (UTC) of version 1.
        doi: of the published paper, without an address before it; None if the authors gave none.
        journal_reference: where it was published, in the authors' words; None if they gave none.
        withdrawn: the authors took it back. arXiv has no field for this; it stands at the beginning of the comment
            or of the abstract.
    """

    id: str
    version: int
    title: str
    authors: tuple[str, ...]
    published: date
    doi: str | None = None
    journal_reference: str | None = None
    withdrawn: bool = False


def parse_id(text: str) -> tuple[str, int | None]:
    """Read an arXiv id as people write it, address and version included, into the id and its version.

    Raises:
        ValueError: it is no arXiv id.
    """
    match = _ID.fullmatch(_AROUND_ID.sub("", text.strip()))
    if match is None:
        raise ValueError(f'{text!r} is no arXiv id; write it as in "2106.09685" or "cs/0112017"')
    return match["id"], int(match["version"]) if match["version"] else None


class Arxiv:
    """arXiv's API, asked for papers by their ids; use one for all that is asked, since it keeps the pace.

    Args:
        url: address of the query interface.
        pace: seconds between the end of a request and the next one.
        timeout: seconds without a byte after which a request is given up; a whole answer may take six times as long.
        tell: is given a line where there is a wait that is not arXiv's usual pace.
    """

    def __init__(
        self, url: str = URL, pace: float = PACE, timeout: float = 20.0, tell: Callable[[str], object] = lambda _: None
    ) -> None:
        logging.getLogger("arxiv").setLevel(logging.ERROR)  # what it warns of is told here in other words
        # the adapter paces and repeats, so the package's own client must do neither
        self._client = arxiv.Client(page_size=BATCH, delay_seconds=0, num_retries=0)
        self._client.query_url_format = f"{url}?{{}}"
        adapter = _PatientAdapter(pace, timeout, tell)
        for scheme in ("https://", "http://"):
            self._client._session.mount(scheme, adapter)  # noqa: SLF001 - the client takes no session of ours
        self._refusals = 0

    @classmethod
    def from_environment(cls, tell: Callable[[str], object] = lambda _: None) -> Arxiv:
        """Use arXiv itself, or what GENAI_KB_ARXIV_URL, _PACE and _TIMEOUT name in its place.

        Raises:
            ValueError: pace or time-out is no number of seconds, or the pace is faster than arXiv allows.
        """
        url = os.environ.get("GENAI_KB_ARXIV_URL", URL)
        pace = _seconds("GENAI_KB_ARXIV_PACE", PACE)
        if pace < PACE and f".{urlsplit(url).hostname}".endswith(".arxiv.org"):
            raise ValueError(f"GENAI_KB_ARXIV_PACE is {pace:g}; arXiv asks for at least {PACE:g} seconds")
        return cls(url, pace, _seconds("GENAI_KB_ARXIV_TIMEOUT", 20.0), tell)

    def batches(self, ids: Sequence[str]) -> Iterator[dict[str, Paper | None]]:
        """Ask for papers, a batch at a time: each batch's ids as given, with None for those that arXiv has not.

        Raises:
            UnreachableError: there is no connection.
            ArxivError: arXiv does not answer, or with something else than papers.
        """
        for start in range(0, len(ids), BATCH):
            yield self.papers(ids[start : start + BATCH])

    def papers(self, ids: Sequence[str]) -> dict[str, Paper | None]:
        """Ask for at most BATCH papers; raises as `batches`."""
        asked = {given: _canonical(given) for given in ids}
        found = self._ask(list(dict.fromkeys(asked.values())))
        if missing := [wanted for wanted in dict.fromkeys(asked.values()) if wanted not in found]:
            found |= self._ask(missing)  # arXiv now and then drops papers, or all of them, from a feed
        if not found and len(ids) > 1:
            raise ArxivError(f"arXiv's feed is empty: none of {len(ids)} papers is in it; try again later")
        return {given: found.get(wanted) for given, wanted in asked.items()}

    def _ask(self, ids: list[str]) -> dict[str, Paper]:
        """The papers that arXiv has; a batch that it refuses for one id is halved until that id stands alone."""
        results = []
        try:
            for result in self._client.results(arxiv.Search(id_list=ids, max_results=len(ids))):
                results.append(result)  # noqa: PERF402 - what came before an error is kept
        except arxiv.UnexpectedEmptyPageError:
            pass  # the feed promised more papers than there are
        except arxiv.HTTPError as error:
            if error.status != requests.codes.bad_request:
                raise ArxivError(f"arXiv answered with HTTP {error.status}; is its address right?") from error
            return self._halved(ids)
        except requests.RequestException as error:
            raise ArxivError(f"arXiv cannot be asked: {_one_line(error)}") from error
        except ValueError as error:
            raise ArxivError(f"arXiv's feed cannot be read: {_one_line(error)}") from error
        if any("/api/errors" in result.entry_id for result in results):
            return self._halved(ids)
        papers = [paper for result in results if (paper := _paper(result))]
        return {paper.id: paper for paper in papers if paper.id in ids}

    def _halved(self, ids: list[str]) -> dict[str, Paper]:
        self._refusals += 1
        if self._refusals > MAX_REFUSALS:
            raise ArxivError(f"arXiv refused {MAX_REFUSALS} requests; its interface may have changed")
        middle = len(ids) // 2
        return self._ask(ids[:middle]) | self._ask(ids[middle:]) if middle else {}


class _PatientAdapter(HTTPAdapter):
    """Sends one request at a time, no sooner than allowed, until its answer is whole.

    Raises from `send`:
        UnreachableError: the first request found no way.
        ArxivError: no try brought an answer.
    """

    def __init__(self, pace: float, timeout: float, tell: Callable[[str], object]) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1)
        self._pace = pace
        self._timeout = timeout
        self._tell = tell
        self._next = time.monotonic()
        self._answered = False

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,  # noqa: ARG002 - an answer is always read to its end
        timeout: object = None,  # noqa: ARG002 - the client gives none
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        proxies: Mapping[str, str] | None = None,
    ) -> Response:
        for attempt in range(1, TRIES + 1):
            self._pause(self._next - time.monotonic())
            reply, fault, retry_after = None, "", None
            try:
                reply = super().send(
                    request, stream=True, timeout=self._timeout, verify=verify, cert=cert, proxies=dict(proxies or {})
                )
                self._answered = True
                fault = _read_whole(reply, time.monotonic() + 6 * self._timeout)
                retry_after = _retry_after(reply)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                fault = self._named(error)
            self._next = time.monotonic() + self._pace
            if reply is not None:
                if not fault:
                    return reply
                reply.close()
            if attempt < TRIES:
                self._back_off(fault, retry_after, self._pace * 2**attempt)
        raise ArxivError(f"arXiv gave no answer in {TRIES} tries: {fault}; try again later")

    def _named(self, error: Exception) -> str:
        """What kept an answer from coming.

        Raises:
            UnreachableError: nothing ever came, and what is in the way is not arXiv.
        """
        reason = getattr(error.args[0] if error.args else None, "reason", error)
        obstacle = next(
            (told for kinds, told in _OBSTACLES.items() if isinstance(error, kinds) or isinstance(reason, kinds)), None
        )
        if obstacle and not self._answered:
            raise UnreachableError(f"arXiv cannot be reached: {obstacle}") from error
        if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
            return f"nothing came for {self._timeout:g} s"
        return "the connection broke off"

    def _back_off(self, fault: str, retry_after: float | None, otherwise: float) -> None:
        wait = max(self._pace, otherwise if retry_after is None else retry_after)
        if wait > MAX_WAIT:
            raise ArxivError(f"arXiv asks to wait {wait:.0f} s ({fault}); run the command again then")
        self._tell(f"arXiv: {fault}; next try in {wait:.0f} s")
        self._next = time.monotonic() + wait

    @staticmethod
    def _pause(seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds)


def _read_whole(reply: Response, deadline: float) -> str:
    """Read an answer to its end and put it back in place; return the fault that makes it worth another try, or ""."""
    body = bytearray()
    while chunk := reply.raw.read1(decode_content=True):
        body += chunk
        if len(body) > MAX_BYTES:
            return f"an answer of more than {MAX_BYTES:,} bytes"
        if time.monotonic() > deadline:
            return "the answer came too slowly"
    reply.raw = io.BytesIO(body)
    if reply.status_code in _BUSY:
        return f"HTTP {reply.status_code}"
    if reply.status_code != requests.codes.ok:
        return ""
    try:  # the package reads what it can of a broken feed and says nothing
        expat.ParserCreate().Parse(bytes(body), True)  # noqa: FBT003 - the parser takes no keywords
    except expat.ExpatError as error:
        return f"a broken feed ({error})"
    return ""


def _retry_after(reply: Response) -> float | None:
    """Seconds that the answer asks to wait, written as such or as a date."""
    value = reply.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())


def _paper(result: arxiv.Result) -> Paper | None:
    """A paper of a feed; None for an entry that is none."""
    try:
        paper_id, version = parse_id(result.entry_id)
    except ValueError:
        return None
    names = [_clean(author.name) for author in result.authors]
    doi = (result.doi or "").split()
    return Paper(
        id=_canonical(paper_id),
        version=version or 1,
        title=_clean(result.title),
        authors=tuple(name for name in names if any(char.isalpha() for char in name)),  # ":" follows a collaboration
        published=result.published.date(),
        doi=re.sub(r"^(?:https?://(?:dx\.)?doi\.org/|doi:)", "", doi[0], flags=re.IGNORECASE) if doi else None,
        journal_reference=_clean(result.journal_ref or "") or None,
        withdrawn=any(_WITHDRAWN.search(text or "") for text in (result.comment, result.summary)),
    )


def _canonical(paper_id: str) -> str:
    """An id as arXiv's feeds write it: math.GT/0309136 has become math/0309136."""
    return re.sub(r"\.[A-Z]{2}/", "/", paper_id)


def _clean(text: str) -> str:
    """A text in one line and composed characters, without those that are not seen."""
    refused = {offset for offset, _ in forbidden_characters(text) if text[offset] not in "\t\r"}
    kept = "".join(char for offset, char in enumerate(text) if offset not in refused)
    return " ".join(unicodedata.normalize("NFC", kept).split())


def _one_line(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 120 else f"{text[:117]}..."


def _seconds(name: str, default: float) -> float:
    try:
        value = float(os.environ.get(name, default))
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {os.environ[name]!r}; write a number of seconds")
    return value
