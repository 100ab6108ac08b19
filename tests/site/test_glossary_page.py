"""The glossary's page, and the links to it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from genai_kb.glossary import by_name
from genai_kb.models import Term
from genai_kb.site.glossary_page import TermLinks, collation_key, first_letter, glossary_page, plain_text
from genai_kb.site.markup import prose, questions
from genai_kb.site.pages import build_pages
from tests.rendering import PAYLOADS, elements, forbidden, render, text_of

if TYPE_CHECKING:
    from tests.roadmap import Project


def term(name: str, *forms: str, definition: str = "What it is.") -> Term:
    data: dict[str, Any] = {
        "id": re.sub(r"\W+", "-", name.lower()),
        "en": name,
        "es": name,
        "forms": {"en": forms},
        "definition": {"en": definition, "es": definition},
    }
    return Term.model_validate(data)


TERMS = [
    term("attention"),
    term("self-attention", "self attention"),
    term("attention head", "attention heads"),
    term("LoRA"),
    term("shot"),
    term("loss", definition='The *mean* of $-\\log q$ and `x`, see [this](https://a.example) "thing" \\* {x}.'),
]


def links() -> TermLinks:
    return TermLinks(by_name(TERMS, "en"), "track/section", "en")


def linked(text: str) -> list[tuple[str, str]]:
    """Text and anchor of each link to the glossary in a text, rendered."""
    return term_links(render(prose(text, terms=links())), "../../glossary.md#")


def term_links(html: str, before: str) -> list[tuple[str, str]]:
    """Text and anchor of each link to the glossary, whose address begins with what is given."""
    found = re.findall(r'<a class="kb-term" href="([^"]*)" title="[^"]*">([^<]*)</a>', html)
    assert html.count('class="kb-term"') == len(found), "nothing stands in such a link but text"
    assert all(href.startswith(before) for href, _ in found)
    return [(text, href.removeprefix(before)) for href, text in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Attention and attention.", [("Attention", "attention")]),
        ("Self-attention, not attention.", [("Self-attention", "self-attention"), ("attention", "attention")]),
        ("An attention\nhead.", [("attention head", "attention-head")]),
        ("Attention heads attend.", [("Attention heads", "attention-head")]),
        ("*LoRA* and **attention**", [("LoRA", "lora"), ("attention", "attention")]),
        ("- attention\n- LoRA", [("attention", "attention"), ("LoRA", "lora")]),
        ("“LoRA” (attention)", [("LoRA", "lora"), ("attention", "attention")]),
        ("inattention, LoRAs, attentive", []),
        ("one-shot, attention-based", []),
        ("`attention` and $attention$ and $$\nattention\n$$", []),
        ("[attention](https://attention.example/LoRA) https://a.example/LoRA", []),
        ("[all of attention](https://a.example), attention", [("attention", "attention")]),
        ("!attention [attention]", []),
    ],
)
def test_the_first_occurrence_of_a_term_becomes_a_link(text: str, expected: list[tuple[str, str]]) -> None:
    assert linked(text) == expected


def test_a_link_tells_the_definition_in_plain_text() -> None:
    (link,) = [e for e in elements(render(prose("The loss falls.", terms=links()))) if e.tag == "a"]
    assert link.attributes["title"] == 'The mean of -\\log q and x, see this "thing" * {x}.'


def test_a_link_changes_no_word_of_the_text() -> None:
    text = "**Attention** (LoRA): the loss, the *attention heads* & one-shot learning"
    assert text_of(elements(render(prose(text, terms=links())))) == text_of(elements(render(prose(text))))


def test_a_term_is_linked_once_on_a_page(sound_project: Project) -> None:
    for language, name in (("en", "draws"), ("es", "muestras")):
        pages = build_pages(sound_project.catalog(), language)
        for path, text in pages.items():
            found = term_links(render(text), "../" * path.count("/") + "glossary.md#")
            targets = [target for _, target in found]
            assert len(targets) == len(set(targets)), path
            assert not targets or path != "glossary.md"
        averages = term_links(render(pages["estimation/first-steps/averages.md"]), "../../glossary.md#")
        assert (name, "draw") in averages


def test_questions_are_left_alone_and_answers_link(sound_project: Project) -> None:
    asked = sound_project.catalog().items["averages"].entry.questions
    terms = TermLinks(by_name([term("draws"), term("mean")], "en"), "a/b", "en")
    questions(asked, "en", terms)
    answers = " ".join(question.answer.en for question in asked)
    assert set(terms.found) == {name for name in ("draws", "mean") if name in answers.lower().split()}


def test_the_search_of_a_page_knows_the_other_languages_names(sound_project: Project) -> None:
    catalog = sound_project.catalog()
    for language, other in (("en", "muestras"), ("es", "draws")):
        for path in ("estimation/first-steps/averages.md", "estimation/first-steps/index.md"):
            page = elements(render(build_pages(catalog, language)[path]))
            metas = [e.attributes.get("data-pagefind-meta") or "" for e in page]
            (words,) = [meta for meta in metas if meta.startswith("kw:")]
            assert other in words.split()


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_survives_beside_a_link_or_in_its_title(payload: str) -> None:
    loss = term("loss")
    poisoned = loss.model_copy(update={"definition": loss.definition.model_copy(update={"en": payload})})
    terms = TermLinks(by_name([poisoned], "en"), "a/b", "en")
    page = elements(render(prose(f"{payload} loss {payload}loss", terms=terms)))
    assert forbidden(page) == []


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_survives_on_the_glossary_page(project: Project, payload: str) -> None:
    catalog = project.catalog()
    poisoned = [
        entry.model_copy(
            update={
                "en": f"{entry.en} {payload}",
                "es": f"{entry.es} {payload}",
                "avoid": (payload,),
                "definition": entry.definition.model_copy(update={"en": payload, "es": payload}),
            }
        )
        for entry in catalog.terms
    ]
    catalog.glossary["basics"] = catalog.glossary["basics"].model_copy(update={"terms": tuple(poisoned)})
    for language in ("en", "es"):
        assert forbidden(elements(render(glossary_page(catalog, language)))) == []


def test_terms_stand_in_the_order_of_their_language(sound_project: Project) -> None:
    catalog = sound_project.catalog()
    for language, order in (
        ("en", ["draw", "mean", "number", "rhea"]),
        ("es", ["media", "muestra", "número", "ñandú"]),
    ):
        page = elements(render(glossary_page(catalog, language)))
        assert [e.text.strip() for e in page if e.tag == "dfn"] == order
        letters = [e.text.strip() for e in page if e.tag == "h2"]
        assert letters == sorted({name[0].upper() for name in order}, key=lambda a: collation_key(a, language))


def test_a_term_shows_the_other_language_its_entry_and_what_to_avoid(sound_project: Project) -> None:
    catalog = sound_project.catalog()
    english, spanish = (elements(render(glossary_page(catalog, language))) for language in ("en", "es"))
    assert [e.text.strip() for e in spanish if e.tag == "span" and e.attributes.get("lang") == "en"][:2] == [
        "mean",
        "draw",
    ]
    assert "estimation/first-steps/averages.md" in [e.attributes.get("href") for e in spanish]
    assert "medians" in text_of(spanish), "a planned entry has no page to link"
    assert "extracción al azar" in text_of(spanish)
    assert "extracción al azar" not in text_of(english)
    assert {"draw", "mean", "nandu", "number", "letter-ñ"} <= {e.attributes.get("id") for e in spanish}


@pytest.mark.parametrize(
    ("language", "order"),
    [
        ("es", ["3D", "ancla", "Ánfora", "año", "nz", "ñu", "oso"]),
        ("es", ["ajuste fino", "ajuste fino completo", "ajustes"]),
        ("en", ["token", "Token", "tokens", "top-k"]),
    ],
)
def test_accents_and_capitals_decide_last(language: str, order: list[str]) -> None:
    keys = [collation_key(text, language)[0] for text in order]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    ("text", "language", "letter"),
    [("ñandú", "es", "Ñ"), ("época", "es", "E"), ("Ávila", "es", "A"), ("3D", "en", "0–9"), ("token", "en", "T")],
)
def test_a_term_stands_under_its_letter(text: str, language: str, letter: str) -> None:
    assert first_letter(text, language) == letter


def test_plain_text_has_no_signs_of_markup() -> None:
    text = "A **bold** [link](https://a.example), `code`, $x^2$ and\n\\* a star"
    assert plain_text(text) == "A bold link, code, x^2 and * a star"
