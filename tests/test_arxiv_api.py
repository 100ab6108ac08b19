"""Talking to arXiv: against a real server on loopback that answers well, badly, late or not at all."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from genai_kb.arxiv_api import BATCH, TRIES, Arxiv, ArxivError, Paper, UnreachableError, parse_id
from tests.arxiv_server import (
    Entry,
    FakeArxiv,
    body,
    cut_before,
    cut_midway,
    drip,
    error_feed,
    feed,
    hang,
    hang_midway,
    serving,
    status,
    truncated,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.arxiv_server import Answer

DARTS = Paper("2101.00001", 1, "Throwing Darts at Circles", ("Łucía Núñez", "Per Ødegård"), date(2021, 1, 4))


@pytest.fixture
def server() -> Iterator[FakeArxiv]:
    with serving() as fake:
        fake.add(Entry("2101.00001"))
        yield fake


def ask(server: FakeArxiv, *ids: str, pace: float = 0, timeout: float = 5) -> dict[str, Paper | None]:
    return Arxiv(server.url, pace, timeout).papers(ids)


def one(server: FakeArxiv, entry: Entry) -> Paper:
    server.add(entry)
    paper = ask(server, entry.id)[entry.id]
    assert paper is not None
    return paper


# What a feed says


def test_a_paper_comes_with_what_arxiv_knows(server: FakeArxiv) -> None:
    full = Entry("2101.00001", version=7, journal_ref="J. Darts 3\n  (2022) 1-9", doi="10.1000/d.1")
    assert one(server, full) == Paper(
        DARTS.id, 7, DARTS.title, DARTS.authors, DARTS.published, "10.1000/d.1", "J. Darts 3 (2022) 1-9"
    )


def test_a_title_keeps_its_tex_and_entities_and_loses_its_line_breaks(server: FakeArxiv) -> None:
    title = 'On $\\ell_1$ & $x<y$:\n  Schr\\"odinger\'s "<b>" &amp; caf\u00e9'
    assert one(server, Entry("2101.00001", title=title)).title == (
        'On $\\ell_1$ & $x<y$: Schr\\"odinger\'s "<b>" &amp; caf\u00e9'
    )


def test_accents_are_composed_and_unseen_characters_dropped(server: FakeArxiv) -> None:
    paper = one(
        server, Entry("2101.00001", title="Cafe\u0301\u200b \u202etext", authors=("Jose\u0301 Nu\u0301n\u0303ez",))
    )
    assert (paper.title, paper.authors) == ("Caf\u00e9 text", ("Jos\u00e9 N\u00fa\u00f1ez",))


def test_a_collaboration_is_an_author_and_a_colon_is_none(server: FakeArxiv) -> None:
    paper = one(server, Entry("2101.00001", authors=("The ATLAS Collaboration", ":", "Bart van Merri\u00ebnboer")))
    assert paper.authors == ("The ATLAS Collaboration", "Bart van Merri\u00ebnboer")


@pytest.mark.parametrize(
    ("comment", "summary", "withdrawn"),
    [
        ("This paper has been withdrawn by the authors", "We throw.", True),
        (None, "This submission was withdrawn due to an error in Lemma 2.", True),
        ("Withdrawn: superseded by 2102.00002", "We throw.", True),
        ("The article has been temporarily withdrawn", "We throw.", True),
        ("12 pages", "We study how a drug withdrawn from the market behaves.", False),
        ("12 pages", "Consent that this paper has been withdrawn from is studied.", False),
        (None, "We throw darts.", False),
    ],
)
def test_a_withdrawal_is_read_where_its_authors_say_it(
    server: FakeArxiv, comment: str | None, summary: str, *, withdrawn: bool
) -> None:
    assert one(server, Entry("2101.00001", comment=comment, summary=summary)).withdrawn is withdrawn


@pytest.mark.parametrize("doi", ["10.1/x", "https://doi.org/10.1/x", "doi:10.1/x 10.2/y"])
def test_a_doi_is_told_without_its_address(server: FakeArxiv, doi: str) -> None:
    assert one(server, Entry("2101.00001", doi=doi)).doi == "10.1/x"


# Which papers


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("2106.09685", ("2106.09685", None)),
        (" 2106.09685v2 ", ("2106.09685", 2)),
        ("arXiv:0704.0001", ("0704.0001", None)),
        ("https://arxiv.org/abs/2106.09685v12", ("2106.09685", 12)),
        ("http://www.arxiv.org/pdf/2106.09685v1.pdf", ("2106.09685", 1)),
        ("cs/0112017", ("cs/0112017", None)),
        ("https://arxiv.org/abs/math.GT/0309136v1", ("math.GT/0309136", 1)),
    ],
)
def test_an_id_is_read_as_people_write_it(text: str, read: tuple[str, int | None]) -> None:
    assert parse_id(text) == read


@pytest.mark.parametrize(
    "text", ["", "lora", "2106.096", "2106.09685v", "2106.09685v0", "https://example.org/2106.09685"]
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no arXiv id"):
        parse_id(text)


def test_old_style_ids_are_found_and_told_as_they_were_asked_for(server: FakeArxiv) -> None:
    server.add(Entry("cs/0112017"), Entry("math/0309136"))
    found = ask(server, "cs/0112017", "math.GT/0309136")
    assert {asked: paper and paper.id for asked, paper in found.items()} == {
        "cs/0112017": "cs/0112017",
        "math.GT/0309136": "math/0309136",
    }


def test_an_unknown_id_is_none_and_the_others_are_not_harmed(server: FakeArxiv) -> None:
    assert ask(server, "2101.99999", "2101.00001") == {"2101.99999": None, "2101.00001": DARTS}
    assert ask(server, "2101.99999") == {"2101.99999": None}


def test_an_id_that_arxiv_refuses_is_found_by_halving(server: FakeArxiv) -> None:
    ids = [f"2101.{number:05}" for number in range(1, 9)]
    server.add(*(Entry(wanted) for wanted in ids))
    server.refused = {ids[5]}
    found = ask(server, *ids)
    assert [wanted for wanted, paper in found.items() if paper is None] == [ids[5]]


def test_an_error_that_arxiv_wraps_as_a_paper_is_none(server: FakeArxiv) -> None:
    server.script = [body(error_feed()), body(error_feed())]
    assert ask(server, "2101.00001") == {"2101.00001": None}


def test_where_everything_is_refused_it_stops(server: FakeArxiv) -> None:
    server.script = [status(400)] * 100
    with pytest.raises(ArxivError, match="refused 30 requests"):
        ask(server, *(f"2101.{number:05}" for number in range(100)))


def test_five_hundred_ids_come_in_batches(server: FakeArxiv) -> None:
    ids = [f"2101.{number:05}" for number in range(500)]
    server.add(*(Entry(wanted, title=f"Paper {wanted}") for wanted in ids))
    batches = list(Arxiv(server.url, pace=0).batches(ids))
    assert [len(batch) for batch in batches] == [BATCH] * 5
    assert len(server.requests) == 5
    titles = {wanted: paper and paper.title for batch in batches for wanted, paper in batch.items()}
    assert titles == {wanted: f"Paper {wanted}" for wanted in ids}


def test_a_feed_that_promises_more_than_there_is_costs_nothing(server: FakeArxiv) -> None:
    server.script = [body(feed([Entry("2101.00001")], total=2)), body(feed([], total=2))]
    assert ask(server, "2101.00001", "2101.99999") == {"2101.00001": DARTS, "2101.99999": None}


# What may go wrong on the way


@pytest.mark.parametrize(
    "fault",
    [
        status(429),
        status(503),
        status(500),
        cut_before,
        cut_midway,
        truncated,
        body(b"Rate exceeded."),
        body(b"<feed><entry></feed>"),
        body(b""),
        body(feed([Entry("2101.00001")])[:-9] + b"&nosuch;</feed>"),
        body(feed([])),
    ],
    ids=["429", "503", "500", "cut", "cut-midway", "truncated", "text", "malformed", "empty", "entity", "empty-feed"],
)
def test_a_passing_fault_is_followed_by_another_try(server: FakeArxiv, fault: Answer) -> None:
    server.script = [fault]
    assert ask(server, "2101.00001") == {"2101.00001": DARTS}
    assert len(server.requests) == 2


@pytest.mark.parametrize("fault", [hang, hang_midway, drip], ids=["hang", "hang-midway", "drip"])
def test_an_answer_that_does_not_come_is_given_up(server: FakeArxiv, fault: Answer) -> None:
    server.script = [fault]
    started = time.monotonic()
    assert ask(server, "2101.00001", timeout=0.2) == {"2101.00001": DARTS}
    assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(503), "no answer in 5 tries: HTTP 503; try again later"),
        (cut_before, "no answer in 5 tries: the connection broke off"),
        (truncated, r"no answer in 5 tries: a broken feed \("),
    ],
    ids=["503", "cut", "truncated"],
)
def test_a_lasting_fault_is_told_in_one_line(server: FakeArxiv, fault: Answer, message: str) -> None:
    server.script = [fault] * 10
    with pytest.raises(ArxivError, match=message) as error:
        ask(server, "2101.00001")
    assert len(server.requests) == TRIES
    assert "\n" not in str(error.value)


def test_a_feed_that_stays_empty_is_no_proof_that_many_papers_do_not_exist(server: FakeArxiv) -> None:
    server.script = [body(feed([]))] * 2
    with pytest.raises(ArxivError, match="feed is empty: none of 2 papers"):
        ask(server, "2101.00001", "2101.00002")


def test_a_date_that_is_none_is_told(server: FakeArxiv) -> None:
    server.add(Entry("2101.00001", published="yesterday"))
    with pytest.raises(ArxivError, match="feed cannot be read"):
        ask(server, "2101.00001")


def test_another_status_is_told_at_once(server: FakeArxiv) -> None:
    server.script = [status(403)]
    with pytest.raises(ArxivError, match="HTTP 403"):
        ask(server, "2101.00001")
    assert len(server.requests) == 1


def test_without_a_connection_it_says_so_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="cannot be reached: no connection is accepted"):
        Arxiv("http://127.0.0.1:9/api/query", pace=5).papers(["2101.00001"])
    with pytest.raises(UnreachableError, match="its name cannot be looked up"):
        Arxiv("http://arxiv.invalid/api/query", pace=5).papers(["2101.00001"])
    assert time.monotonic() - started < 4


# Pace


def gaps(server: FakeArxiv) -> list[float]:
    times = [moment for moment, _ in server.requests]
    return [later - earlier for earlier, later in pairwise(times)]


def test_requests_keep_their_distance_on_one_connection(server: FakeArxiv) -> None:
    ids = [f"2101.{number:05}" for number in range(3 * BATCH)]
    server.add(*(Entry(wanted) for wanted in ids))
    list(Arxiv(server.url, pace=0.3).batches(ids))
    assert len(gaps(server)) == 2
    assert min(gaps(server)) >= 0.3
    assert server.connections == 1


def test_each_further_try_waits_longer(server: FakeArxiv) -> None:
    server.script = [status(503)] * 3
    told: list[str] = []
    Arxiv(server.url, pace=0.1, tell=told.append).papers(["2101.00001"])
    assert [gap >= wait for gap, wait in zip(gaps(server), [0.2, 0.4, 0.8], strict=True)] == [True] * 3
    assert told[0] == "arXiv: HTTP 503; next try in 0 s"
    assert len(told) == 3


def test_a_wait_that_arxiv_asks_for_is_kept(server: FakeArxiv) -> None:
    server.script = [status(429, Retry_After="1")]
    ask(server, "2101.00001")
    assert gaps(server)[0] >= 1


def test_a_wait_until_a_date_is_kept(server: FakeArxiv) -> None:
    server.script = [status(503, Retry_After=format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True))]
    ask(server, "2101.00001")
    assert gaps(server)[0] >= 0.9


def test_a_wait_is_never_shorter_than_the_pace(server: FakeArxiv) -> None:
    server.script = [status(503, Retry_After="0"), status(503, Retry_After="soon")]
    ask(server, "2101.00001", pace=0.2)
    assert min(gaps(server)) >= 0.2


def test_a_long_wait_is_left_to_the_reader(server: FakeArxiv) -> None:
    server.script = [status(429, Retry_After="3600")]
    with pytest.raises(ArxivError, match=r"asks to wait 3600 s \(HTTP 429\)"):
        ask(server, "2101.00001")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("GENAI_KB_ARXIV_PACE", "2.9", "arXiv asks for at least 3 seconds"),
        ("GENAI_KB_ARXIV_PACE", "fast", "write a number of seconds"),
        ("GENAI_KB_ARXIV_TIMEOUT", "-1", "write a number of seconds"),
        ("GENAI_KB_ARXIV_TIMEOUT", "nan", "write a number of seconds"),
    ],
)
def test_the_environment_cannot_hurry_arxiv(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        Arxiv.from_environment()
