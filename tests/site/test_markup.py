"""Texts on their way to Markdown: whatever they hold, no tag, attribute or foreign link comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from genai_kb.models import Bilingual, BilingualLine, Question
from genai_kb.site.markup import attribute, code_span, first_sentence, plain, prose, questions
from genai_kb.text import check_text
from tests.rendering import PAYLOADS, Element, elements, forbidden, render, text_of

if TYPE_CHECKING:
    from collections.abc import Callable

# Texts that brought a link or a tag through an earlier version, or came close.
CUNNING = [
    r"$a \\) [x](javascript:alert(1))$",
    r"$a \\\) <img src=x onerror=alert(1)>$",
    "$a [x](javascript:alert(1)) ` b$ and $c ` d$",
    "$a` <script>alert(1)</script> `b$",
    "$$a ` b$$ $$c ` [x](javascript:alert(1))$$",
    "[x](foo): javascript:alert(1)\n\nand [x] and [x][x]",
    "[x](foo)(javascript:alert(1))",
    "[x]\x02(javascript:alert(1))",
    "<\x02script>alert(1)</script>",
    "\x02wzxhzdk:0\x03 \x02amp\x03lt;script>",
    "[x]\\(javascript:alert(1)\\)",
    r"\(<script>alert(1)</script>\) \[<b>\]",
    "\\\\[x](javascript:alert(1))",
    "![x](javascript:alert(1)) !\\[x](//a.b)",
    "[x](https://a.b)(javascript:alert(1)) [y]( javascript:alert(1))",
    "[x](<javascript:alert(1)>) <javascript:alert(1)>",
    "[x](\njavascript:alert(1))",
    "[x](JaVaScRiPt:alert(1)) [x](&#106;avascript:alert(1)) [x](//evil.example)",
    "`a`{onclick=alert(1)} *a*{: onclick=alert(1)}\n{onclick=alert(1)}",
    "# a {onclick=alert(1)}\n\na\n{: onclick=alert(1) }",
    "``` {onclick=alert(1)}\nx\n```",
    "```html\n<script>alert(1)</script>\n```\n~~~ {.x onclick=alert(1)}\ny\n~~~",
    "[^1]: <script>\n\n*[abc]: <script>\n\nabc[^1]",
    "| a | b |\n|---|---|\n| <script> | {onclick=alert(1)} |",
    '!!! note "<script>"\n    <script>alert(1)</script>',
    "a\n: <script>alert(1)</script>",
    "    <script>alert(1)</script>",
    "</article></div><svg onload=alert(1)>",
    "<!-- --><script>alert(1)</script>",
    "$</script><script>alert(1)</script>$",
    "$$\n\\begin{a}<img src=x onerror=alert(1)>\\end{a}\n$$",
    "`` ` <script>alert(1)</script>",
    "`<script>` ``` `` <script> `` ```",
    "`</details><script>alert(1)</script>`",
    "a `</summary></details></div><img src=x onerror=alert(1)>` b",
    "`<details>` `</div>` `<p>` [`</a>`](https://a.b)",
    "\\begin{align}<script>\\end{align}",
]


def found(markdown: str) -> list[Element]:
    return elements(render(markdown))


# Author's texts


@pytest.mark.parametrize("text", [*PAYLOADS, *CUNNING])
@pytest.mark.parametrize("around", ["{}", "a\n\n{}\n\nb", "<div markdown>\n\n{}\n</div>"])
def test_no_payload_survives_in_prose(text: str, around: str) -> None:
    assert forbidden(found(around.format(prose(text)))) == []


@pytest.mark.parametrize("text", [*PAYLOADS, *CUNNING])
@pytest.mark.parametrize(
    "around",
    ["{}", "a {} b", "- {}\n- x", "**a.** {}", "## {} {{#id}}", "{}\n{{.kb-lead}}", '<p markdown="span">{} a</p>'],
)
def test_no_payload_survives_beside_other_text(text: str, around: str) -> None:
    assert forbidden(found(around.format(prose(text, inline=True)))) == []


pieces = st.sampled_from(
    [*PAYLOADS, *CUNNING, *"[](){}<>$`\\!*_#|:;&\"'=/ \n\t", "](", "$$", "``", "\\(", "\\)", "\\[", "\\]", "](https://a.b", "x", "\n\n",
     "javascript:alert(1)", "onclick=x", "\x02", "\x03", "&lt;", "&#60;", "\n    ", "- ", "<a href=//b>", "https://a.b"]
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(text=st.lists(pieces, max_size=12).map("".join) | st.text(max_size=60))
@example(text="]](](]:](\n")
def test_no_text_whatever_brings_markup_into_the_page(text: str) -> None:
    assert forbidden(found(prose(text))) == []
    assert forbidden(found(f"a {prose(text, inline=True)}\n{{.kb-lead}}")) == []
    assert forbidden(found(questions([question(text, text)], "en"))) == []


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("A *word*, **two** and `a < b`.", "<p>A <em>word</em>, <strong>two</strong> and <code>a &#60; b</code>.</p>"),
        ("[x](https://a.b/c?d=1&e=2)", '<p><a href="https://a.b/c?d=1&amp;e=2">x</a></p>'),
        ("- a\n- b", "<ul>\n<li>a</li>\n<li>b</li>\n</ul>"),
        ("one\n\ntwo", "<p>one</p>\n<p>two</p>"),
        ("a < b, one of {1, 2}.", "<p>a &#60; b, one of &#123;1, 2}.</p>"),
        ("costs \\$5 \\# and \\*", "<p>costs &#36;5 # and *</p>"),
        (r"a\\b \(x\)", r"<p>a\b &#40;x&#41;</p>"),
        ("`{x}` `` ` ``", "<p><code>&#123;x&#125;</code> <code>&#96;</code></p>"),
        ("$a<b$", r'<p><span class="arithmatex">\(a\lt b\)</span></p>'),
        ("$x \\\\ y$", r'<p><span class="arithmatex">\(x \\ y\)</span></p>'),
        ("see\n\n$$\na\n= b\n$$\n\nend", '<p>see</p>\n<div class="arithmatex">\\[\na = b\n\\]</div>\n<p>end</p>'),
        ("¿Qué? [cite] x!", "<p>¿Qué? [cite] x!</p>"),
    ],
)
def test_what_authors_may_write_is_shown_as_they_mean_it(text: str, html: str) -> None:
    check_text(text)
    assert render(prose(text)) == html


# Plain texts


@pytest.mark.parametrize("text", [*PAYLOADS, *CUNNING])
@pytest.mark.parametrize("around", ["# {}", "[{}](x.md)", "a {} b", "<b>{}</b>", "| {} | a |\n|---|---|\n| {} | a |"])
def test_no_payload_survives_as_plain_text(text: str, around: str) -> None:
    tree = found(around.format(plain(text), plain(text)))
    assert forbidden(tree) == []
    assert " ".join(text_of(tree).split()).count("alert(1)") >= text.count("alert(1)")


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=40))
def test_plain_text_is_shown_letter_by_letter(text: str) -> None:
    shown = text_of(found(f"x{plain(text)}x"))
    assert " ".join(shown.split()) == " ".join(f"x{' '.join(text.split())}x".split())


@pytest.mark.parametrize("text", [*PAYLOADS, *CUNNING])
def test_an_attribute_holds_any_text(text: str) -> None:
    (element,) = elements(f'<span title="{attribute(text)}"></span>')
    assert element.attributes == {"title": " ".join(text.split())}


@pytest.mark.parametrize("text", [*PAYLOADS, *CUNNING, "`", "``a``", "a\n\nb"])
def test_code_is_code_alone(text: str) -> None:
    tree = found(f"a {code_span(text)} b")
    assert forbidden(tree) == []
    assert [element.tag for element in tree] == ["p", "code"]


# Lists and questions


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("One. Two.", "One."),
        ("Only one", "Only one"),
        ("Is it? Yes.", "Is it?"),
        ("It has 3.5 parts, e.g. this. Then more.", "It has 3.5 parts, e.g. this."),
        ("Es así. ¿Por qué?", "Es así."),
        ("A\nline. Árbol.", "A line."),
    ],
)
def test_a_first_sentence_ends_at_its_full_stop(text: str, beginning: str) -> None:
    assert first_sentence(text) == beginning


def question(ask: str, answer: str) -> Question:
    """A question past validation."""
    return Question.model_construct(
        ask=BilingualLine.model_construct(en=ask, es=ask), answer=Bilingual.model_construct(en=answer, es=answer)
    )


def test_answers_open_on_a_click_without_a_script() -> None:
    tree = found(questions([question("What is $n$?", "A *number*."), question("And?", "- a\n- b")], "en"))
    tags = [element.tag for element in tree]
    assert tags.count("details") == tags.count("summary") == 2
    assert {"em", "ul"} <= set(tags)
    assert "arithmatex" in {element.attributes.get("class") for element in tree}


@pytest.mark.parametrize("text", [*PAYLOADS, *CUNNING])
@pytest.mark.parametrize(
    "make", [lambda text: question(text, "x"), lambda text: question("x", text)], ids=["ask", "answer"]
)
def test_no_payload_survives_in_questions(text: str, make: Callable[[str], Question]) -> None:
    tree = found(questions([make(text), question("y", "z")], "es"))
    assert forbidden(tree) == []
    assert [element.tag for element in tree].count("details") == 2
