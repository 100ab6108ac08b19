"""The catalogue: what all files say together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from genai_kb.catalog import Catalog, load_catalog
from genai_kb.problems import ProblemsError
from genai_kb.validation import find_circle
from genai_kb.verdicts import Verdict

if TYPE_CHECKING:
    from tests.roadmap import Project


def test_entries_come_in_the_order_of_the_roadmap(sound_project: Project) -> None:
    catalog = sound_project.catalog()
    assert list(catalog.places) == ["averages", "medians", "dartboard", "quasi-random", "guess-book", "dice-box"]
    assert list(catalog.items) == ["averages", "dartboard", "guess-book", "dice-box"]
    assert [item.place.number for item in catalog.items.values()] == [1, 3, 5, 6]
    assert catalog.planned == ["medians", "quasi-random"]


def test_a_place_is_the_path_of_track_and_section(sound_project: Project) -> None:
    catalog = sound_project.catalog()
    assert catalog.places["quasi-random"].folder == "estimation/areas"
    dartboard = catalog.items["dartboard"]
    assert dartboard.reproduction == sound_project.root.resolve() / "reproductions/estimation/areas/dartboard.py"
    assert catalog.items["dice-box"].reproduction is None


def test_a_chapter_has_the_texts_of_its_folder_or_none(sound_project: Project) -> None:
    catalog = sound_project.catalog()
    assert catalog.track_texts["estimation"].introduction.en.startswith("How to guess")
    assert catalog.section_texts["estimation/first-steps"].questions[0].answer["es"] == "El número de muestras."
    assert list(catalog.texts) == ["estimation/_track", "estimation/first-steps/_section", "glossary/basics"]
    assert [term["es"] for term in catalog.terms] == ["muestra", "media", "ñandú", "número"]


def test_followers_are_prerequisites_read_backwards(sound_project: Project) -> None:
    assert sound_project.catalog().followers == {
        "averages": ["dartboard", "guess-book"],
        "quasi-random": ["guess-book"],
        "dartboard": ["dice-box"],
    }


@pytest.mark.parametrize(
    ("slug", "path"),
    [
        ("averages", ["averages"]),
        ("dice-box", ["averages", "dartboard", "dice-box"]),
        ("guess-book", ["averages", "quasi-random", "guess-book"]),
        ("medians", ["medians"]),
    ],
)
def test_a_path_leads_through_all_that_is_needed_each_once(sound_project: Project, slug: str, path: list[str]) -> None:
    assert sound_project.catalog().path(slug) == path


def test_a_path_to_an_unknown_slug_is_a_key_error(sound_project: Project) -> None:
    with pytest.raises(KeyError):
        sound_project.catalog().path("darts")


def test_a_path_ends_even_where_prerequisites_go_round_or_are_unknown(project: Project) -> None:
    project.replace("averages.yaml", "tags: [averages]", "tags: [averages]\nprerequisites: [dice-box, nowhere]")
    assert project.catalog().path("dice-box") == ["averages", "dartboard", "dice-box"]


def test_verdicts_are_those_of_the_record(sound_project: Project) -> None:
    items = sound_project.catalog().items
    assert items["averages"].verdicts == [Verdict.REPRODUCED, Verdict.NOT_REPRODUCED]
    assert items["dartboard"].verdicts == [Verdict.NOT_RUN]
    assert items["dartboard"].judgement(items["dartboard"].entry.claims[0]) is None


def test_verdicts_go_stale_with_the_code_but_the_judgement_stays(project: Project) -> None:
    project.replace("draws.py", "HIGH = 0.0, 1.0", "HIGH = 0.0, 2.0")
    averages = project.item("averages")
    assert averages.stale
    assert averages.verdicts == [Verdict.STALE, Verdict.STALE]
    judgement = averages.judgement(averages.entry.claims[0])
    assert judgement is not None
    assert judgement.verdict is Verdict.REPRODUCED


def test_a_claim_newer_than_the_record_was_not_run(project: Project) -> None:
    text = project.read("averages.yaml")
    claim = text[text.index("- id: median-wins") : text.index("figure:")]
    project.replace("averages.yaml", claim, claim + claim.replace("median-wins", "median-wins-again"))
    assert project.item("averages").verdicts == [Verdict.STALE, Verdict.STALE, Verdict.NOT_RUN]


def test_loading_gives_the_catalogue_or_all_errors(project: Project) -> None:
    assert list(load_catalog(project.root).items) == list(project.catalog().items)
    project.replace("draws.py", "HIGH = 0.0, 1.0", "HIGH = 0.0, 2.0")
    assert load_catalog(project.root).items["averages"].stale, "warnings do not keep a project from loading"
    project.replace("dartboard.yaml", "kind: paper", "kind: papr")
    project.replace("dice-box.yaml", "kind: tool", "kind: tol")
    with pytest.raises(ProblemsError) as error:
        load_catalog(project.root)
    assert [problem.field for problem in error.value.problems] == ["kind", "kind"]


def test_a_way_of_two_thousand_entries_is_followed(sound_project: Project) -> None:
    catalog = sound_project.catalog()
    slugs = [f"e{number}" for number in range(2_000)]
    track = catalog.roadmap.tracks[0]
    section = track.sections[0].model_copy(update={"entries": tuple(slugs)})
    roadmap = catalog.roadmap.model_copy(update={"tracks": (track.model_copy(update={"sections": (section,)}),)})
    item = catalog.items["averages"]
    items = {
        slug: replace(item, slug=slug, entry=item.entry.model_copy(update={"prerequisites": (before,)}))
        for slug, before in zip(slugs[1:], slugs, strict=False)
    }
    assert Catalog(catalog.root, roadmap, items).path(slugs[-1]) == slugs
    assert find_circle(Catalog(catalog.root, roadmap, items), slugs[-1], set()) == []
    items[slugs[0]] = replace(item, slug=slugs[0], entry=item.entry.model_copy(update={"prerequisites": (slugs[-1],)}))
    assert find_circle(Catalog(catalog.root, roadmap, items), slugs[5], set())[:2] == [slugs[5], slugs[4]]
