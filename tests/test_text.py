"""Texts: what may be written, what is refused, and what counts as code or formula."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_kb.text import (
    check_line,
    check_text,
    check_url,
    count_words,
    decomposed_words,
    excerpt,
    forbidden_characters,
    single_spaced,
    split_markup,
)


@pytest.mark.parametrize(
    "text",
    [
        "A plain sentence, with *emphasis*, **more of it** and `code`.",
        "Two paragraphs.\n\nThe second one.",
        "A list:\n\n- one\n- two\n\n1. first\n2. second\n",
        "The loss is $L = -\\log p$, and\n\n$$\n\\sum_i x_i\n$$\n\nends here.",
        "See [the paper](https://arxiv.org/abs/2106.09685) and [its `code`](https://github.com/a/b?x=1&y=2#z).",
        "La difusión «añade» ruido: ¿cuánto? Más del 5 %, o sea, 1 000 pasos.",
        "Where a < b, n <5 and 3<4, or x <= y; a > b and a -> b.",
        "A sign: \\# and \\> and \\` and \\$5, or AT&T and A & B.",
        "`<script>`, `{: .x}`, `# no heading`, `![x](y)`, `&lt;` and `javascript:` are only code here.",
        "A formula may hold $a < b$, $<b>$, $\\{x\\}$ and $p(x | y)$.",
        "Written as `` `x` `` and ```` ``` ````.",
        "-5 degrees, +3, and 2 * 3 = 6 * 1.",
        "[cite] in brackets [x] [y](https://example.org).",
        "Emoji 🙂 and 日本語.",
        "The rate is one of {1e-3, 3e-3}, the same ({a, b}) for both arms.",
    ],
)
def test_a_text_within_the_rules_passes_unchanged(text: str) -> None:
    assert check_text(text) == text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("<b>bold</b>", "raw HTML, `<b>`"),
        ("x </div", "raw HTML"),
        ("x <!-- hidden -->", "raw HTML"),
        ("x <?php ?>", "raw HTML"),
        ("x <SCRIPT src=//a>", "raw HTML"),
        ("\\<b>", "raw HTML"),
        ("a <b", "leave a space after a less-than sign"),
        ("*a*`x`<i>", "raw HTML, `<i>`"),
        ("<https://example.org>", "[text](https://...)"),
        ("<JavaScript:alert(1)>", "raw HTML"),
        ("<1@example.org>", "raw HTML"),
        ("&lt;script&gt;", "HTML entity, `&lt;`"),
        ("&#106;ava", "HTML entity, `&#106;`"),
        ("&#x202E;", "HTML entity"),
        ("[x](http://example.org)", "only addresses that begin with https://"),
        ("[x](javascript:alert(1))", "javascript:"),
        ("[x](jAvAsCrIpT:alert)", "`jAvAsCrIpT:`"),
        ("[x](java&#115;cript:alert)", "HTML entity"),
        ("[x](&#x6a;avascript:alert)", "HTML entity"),
        ("[x](data:text/html,x)", "`data:text/html,x`"),
        ("[x](other.md)", "`other.md`"),
        ("[x]()", "only addresses that begin with https://"),
        ("[x](//example.org)", "only addresses that begin with https://"),
        ("[x](HTTPS://example.org)", "only addresses that begin with https://"),
        ("[x]( https://example.org)", "cannot be read"),
        ('[x](https://example.org "title")', "cannot be read"),
        ("[x](<https://example.org>)", "cannot be read"),
        ("[x](https://example.org/a_(b))", "%28"),
        ("[x](https://example.org", "cannot be read"),
        ("[x](`https://example.org`)", "only addresses that begin with https://"),
        ("[x](https://user:secret@example.org)", "user name or password"),
        ("[x]: https://example.org", "link definition"),
        ("text\n\n  [x]: javascript:alert", "link definition"),
        ("- [x]:\n  http://example.org", "link definition"),
        ("*[HTML]: abbreviation", "link definition"),
        ("[^1]: footnote", "link definition"),
        ("![x](https://example.org/a.png)", "an image"),
        ("# Title", "a heading, `#`"),
        ("text\n###### Title", "a heading"),
        ("- # Title in a list", "a heading"),
        ("Title\n=====", "line of signs only"),
        ("Title\n-", "line of signs only"),
        ("a | b\n--|--\n1 | 2", "line of signs only"),
        ("> quoted", "a quotation"),
        ("~~~\ncode\n~~~", "a block, `~~~`, that is neither paragraph nor list"),
        ("!!! note\n    text", "a block, `!!!`"),
        ("term\n: definition", "a block"),
        ("```\ncode\n```", "backtick without a partner"),
        ("*x*{: onclick=alert}", "braces that can set attributes, `{: onclick=alert}`"),
        ("[x](https://example.org){onclick=alert}", "braces that can set attributes"),
        ("`x`{.big}", "braces that can set attributes"),
        ("- item { onclick=alert }", "braces that can set attributes"),
        ("text\n {x} `code`", "braces that can set attributes"),
        ("text\n{onclick=alert}", "braces that can set attributes"),
        ("text {: .big} text", "braces that can set attributes"),
        ("`x", "backtick without a partner"),
        ("`x\ny`", "backtick without a partner"),
        ("`x``", "backtick without a partner"),
        ("``x`", "backtick without a partner"),
        ("costs $5", "has 1 `$`, of which 1 without a partner"),
        ("$a$ and $$b$$ and $c", "has 7 `$`, of which 1 without a partner"),
        ("$a\nb$", "has 2 `$`, of which 2 without a partner"),
        ("$$a\n\nb$$", "has 4 `$`, of which 4 without a partner"),
        ("costs $5 and $6", "begins or ends with a space, $5 and $"),
        ("$ $", "empty formula"),
        ("$$ $$", "empty formula"),
        (f"${'x' * 1001}$", "a formula of 1001 characters"),
        (f"$${'x' * 1001}$$", "a formula of 1001 characters"),
        ("bell \a", "U+0007 (control character)"),
        ("tab\there", "U+0009"),
        ("\u202eevil", "U+202E (right-to-left override)"),
        ("`\u2066evil`", "U+2066"),
        ("$\u061cx$", "U+061C"),
        ("zero\u200bwidth", "U+200B (zero width space)"),
        ("\ufeffmark", "U+FEFF"),
        ("line\u2028break", "U+2028"),
        ("no character \uffff", "U+FFFF"),
        ("cafe\u0301", "composed characters (NFC)"),
    ],
)
def test_a_text_outside_the_rules_is_refused_with_the_reason(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=r"; |is empty") as error:
        check_text(text)
    assert part in str(error.value)


def test_all_that_is_wrong_with_a_text_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"HTML.*Also: .*heading"):
        check_text("# Title\n\n<b>")


@pytest.mark.parametrize(
    "text",
    ["<" + "b" * 500 + ">", "[x](" + "y" * 500 + ")", "$" + "x" * 2000 + "$", "{" + "z" * 500, "](" * 500],
)
def test_a_message_repeats_little_of_the_text(text: str) -> None:
    with pytest.raises(ValueError, match=";") as error:
        check_text(text)
    message = str(error.value)
    assert len(message) < 1500
    assert not any(text[start : start + 61] in message for start in range(len(text) - 61))


@pytest.mark.parametrize("text", ["LoRA", "Attention is *all* you need", "$\\beta$-VAE", "Sección 4.1: «qué»"])
def test_a_line_within_the_rules_passes_unchanged(text: str) -> None:
    assert check_line(text) == text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("two\nlines", "line break"),
        (" space", "begins or ends with a space"),
        ("space\u00a0", "begins or ends with a space"),
        ("<svg onload=alert(1)>", "raw HTML"),
        ("a\u200fb", "U+200F"),
        ("", "empty"),
    ],
)
def test_a_line_outside_the_rules_is_refused_with_the_reason(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=r"; ") as error:
        check_line(text)
    assert part in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://arxiv.org/abs/2106.09685",
        "https://example.org:8443/a/b.html?x=1&y=%20#part",
        "https://en.wikipedia.org/wiki/Transformer_(deep_learning)",
        "https://example.org",
    ],
)
def test_an_https_address_passes_unchanged(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("", "https://"),
        ("http://example.org", "https://"),
        ("ftp://example.org", "https://"),
        ("javascript:alert(1)", "https://"),
        ("example.org", "https://"),
        (" https://example.org", "https://"),
        ("https://", "no host"),
        ("https:///path", "no host"),
        ("https://.", "no host"),
        ("https://[::1", "cannot be read"),
        ("https://example.org:port/", "cannot be read"),
        ("https://example.org:99999/", "cannot be read"),
        ("https://user@example.org", "user name or password"),
        ("https://arxiv.org:pw@evil.org/", "user name or password"),
        ("https://example.org/a b", "U+0020 (space)"),
        ("https://example.org/a\nb", "U+000A"),
        ("https://example.org\\@evil.org", "U+005C"),
        ("https://example.org/\u202e", "U+202E"),
        ("https://example.org/difusión", "U+00F3"),
        ('https://example.org/"onclick=', "U+0022"),
    ],
)
def test_another_address_is_refused_with_the_reason(url: str, part: str) -> None:
    with pytest.raises(ValueError, match=r"; |remove|copy") as error:
        check_url(url)
    assert part in str(error.value)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("one two  three\nfour", 4),
        ("$a + b + c$", 1),
        ("the $$\n\\sum_i x_i\n$$ here", 3),
        ("a $\\beta + 1$-VAE", 2),
        ("run `pip install x` now", 5),
        ("costs \\$5 or \\$6", 4),
        ("one unfinished $ sign", 4),
    ],
)
def test_words_are_counted_with_a_formula_as_one(text: str, count: int) -> None:
    assert count_words(text) == count


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("plain", [("text", "plain")]),
        ("a `b` c", [("text", "a "), ("code", "b"), ("text", " c")]),
        ("`a$b$`", [("code", "a$b$")]),
        ("$a`b`$", [("math", "a`b`")]),
        ("`` a`b ``", [("code", "a`b")]),
        ("$a$$b$", [("math", "a"), ("math", "b")]),
        ("$$a$$$b$", [("display", "a"), ("math", "b")]),
        ("$$\na\n$$", [("display", "\na\n")]),
        ("$$a\\\nb$$", [("display", "a\\\nb")]),
        ("costs \\$5", [("text", "costs $5")]),
        ("$\\$5$", [("math", "\\$5")]),
        ("\\\\$a$", [("text", "\\\\"), ("math", "a")]),
        ("\\`a$b$", [("text", "\\`a"), ("math", "b")]),
        ("a $ b ` c", [("text", "a $ b ` c")]),
        ("`a\nb`", [("text", "`a\nb`")]),
        ("$a\nb$", [("text", "$a\nb$")]),
        ("$$a\n \nb$$", [("text", "$$a\n \nb$$")]),
        ("ends with \\", [("text", "ends with \\")]),
    ],
)
def test_markup_is_split_into_text_code_and_formulas(text: str, pieces: list[tuple[str, str]]) -> None:
    assert split_markup(text) == pieces


words = st.text(alphabet="abc xyz.,", min_size=1).filter(lambda word: word == word.strip())
pieces = st.one_of(
    words.map(lambda word: ("code", word, f"`{word}`")),
    words.map(lambda word: ("math", word, f"${word}$")),
    words.map(lambda word: ("display", word, f"$${word}$$")),
)


@given(st.lists(st.tuples(words, pieces)))
def test_what_was_put_together_is_split_into_the_same_pieces(parts: list[tuple[str, tuple[str, str, str]]]) -> None:
    text = "".join(f"{word} {piece[2]}" for word, piece in parts)
    expected = [pair for word, piece in parts for pair in (("text", f"{word} "), piece[:2])]
    assert split_markup(text) == expected


@given(st.text(alphabet="ab \n\\$`"))
def test_any_string_can_be_split_and_nothing_but_marks_is_lost(text: str) -> None:
    split = "".join(content for _, content in split_markup(text))
    assert [c for c in split if c in "ab"] == [c for c in text if c in "ab"]


def test_forbidden_characters_come_with_their_offsets() -> None:
    assert list(forbidden_characters("a\nb\u202ec\0é\u00a0")) == [
        (3, "U+202E (right-to-left override)"),
        (5, "U+0000 (control character)"),
    ]


def test_decomposed_words_come_with_the_offset_of_their_first_odd_letter() -> None:
    assert list(decomposed_words("el cafe\u0301 no es té")) == [(6, "cafe\u0301")]


def test_an_excerpt_holds_nothing_that_a_terminal_would_act_upon() -> None:
    assert excerpt("a\x1b[31m\u202eb") == "`a?[31m?b`"
    assert excerpt("x" * 100) == "`" + "x" * 40 + "…`"


class _Page(HTMLParser):
    """Collects the tags of a rendered text that the rules do not provide for."""

    allowed = frozenset({"p", "em", "strong", "code", "pre", "ul", "ol", "li", "a", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.unexpected: list[object] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        is_link = tag == "a" and len(attrs) == 1 and (attrs[0][1] or "").startswith("https://")
        if tag not in self.allowed or (attrs and not is_link):
            self.unexpected.append((tag, attrs))

    def handle_comment(self, data: str) -> None:
        self.unexpected.append(data)

    def handle_decl(self, decl: str) -> None:
        self.unexpected.append(decl)


# fmt: off
FRAGMENTS = [
    "<", "b>", "<script>", "</", "!--", "-->", "`", "``", "```", "\\", "#", "=", "---", "[", "]", "(", ")",
    "](https://a.b)", "https://a.b", "javascript:", "x", "{", "}", " {:onclick=x}", "{onclick=x}", " {x",
    "!", "![", "[x]:", "<1@b>", "@", "*", "_", "**", "|", "a|b", "~~~", "&", "&lt;", "&#60;", ";", "'", '"',
    "<a", "`<b>`", "``<b>``", "[`x`](https://a.b/c)", "[^1]:", "\\`", "\\<", "-", "1.", "!!!", ": ", "({x}",
    " {x} ", "}\n", " ", "\n", "\n\n", "    ", "- ",
]
# fmt: on


@settings(max_examples=500)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
def test_no_text_that_passes_renders_to_a_tag_that_was_not_provided_for(text: str) -> None:
    markdown = pytest.importorskip("markdown")
    try:
        check_text(text)
    except ValueError:
        return
    extensions = ["tables", "fenced_code", "attr_list", "md_in_html", "footnotes", "abbr", "def_list", "admonition"]
    page = _Page()
    page.feed(markdown.markdown(text, extensions=extensions))
    page.close()
    assert page.unexpected == []


@given(st.text(st.sampled_from("ab \n\t\xa0\x1c\u2003\u3000\u200b\0ñ"), max_size=12) | st.text())
def test_white_space_of_any_kind_becomes_single_spaces(text: str) -> None:
    assert single_spaced(text) == " ".join(text.split())
