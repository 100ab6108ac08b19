from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_kb.site.maths import FormulaError, check_formulas, to_mathml
from genai_kb.text import MAX_FORMULA

FORMULAS = [
    r"W = W_0 + \frac{\alpha}{r} B A, \quad B \in \mathbb{R}^{d \times r}",
    r"\mathrm{softmax}\left(\frac{Q K^\top}{\sqrt{d_k}}\right) V",
    r"\mathbb{E}_{x \sim p}\left[\log \frac{p(x)}{q(x)}\right] = \KL(p \,\|\, q)",
    r"\operatorname*{arg\,max}_\theta \sum_{i=1}^{n} \log p_\theta(x_i \mid x_{<i})",
    r"x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon, \epsilon \sim \mathcal{N}(0, I)",
    r"\begin{aligned} h_t &= \bar{A} h_{t-1} + \bar{B} x_t \\ y_t &= C h_t \end{aligned}",
    r"\begin{cases} 1 & x > 0 \\ 0 & \text{otherwise} \end{cases}",
    r"\hat y = \begin{pmatrix} a & b \\ c & d \end{pmatrix} \odot \boldsymbol{\mu}",
]

MALFORMED = [
    (r"\frac{a}{b", None, "closing"),
    (r"a + \foo{b}", 4, r"\foo"),
    (r"é + \foo", 4, r"\foo"),
    (r"\left( x", None, ""),
    (r"x^2^3", None, ""),
    (r"a & b", 2, "&"),
]

REFUSED = [
    (r"\def\a{b} \a", "macro"),
    (r"\newcommand{\a}{b} \a", "macro"),
    (r"x \let\a=b", "macro"),
    (r"\color{red} x", "colour"),
    (r"\textcolor{red}{x}", "colour"),
    (r"\eqref{first}", "number"),
    (r"\begin{align} a &= b \end{align}", "use aligned"),
    (r"\hspace{900em} x", r"\quad"),
]


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("display", [True, False])
def test_a_formula_becomes_one_mathml_element_that_xml_readers_accept(formula: str, display: bool) -> None:
    root = ET.fromstring(to_mathml(formula, display=display))

    assert root.tag == "math"
    assert root.get("display", "inline") == ("block" if display else "inline")
    assert len(list(root.iter())) > 3


@pytest.mark.parametrize(
    ("formula", "letter"),
    [(r"\mathbb{E}", "𝔼"), (r"\mathcal{N}", "𝒩"), (r"\mathbf{x}", "𝐱"), (r"\boldsymbol{\theta}", "𝜽")],
)
def test_alphabets_are_unicode_letters_because_browsers_ignore_mathvariant(formula: str, letter: str) -> None:
    assert letter in to_mathml(formula, display=False)


@pytest.mark.parametrize(("formula", "offset", "words"), MALFORMED)
def test_a_malformed_formula_is_refused_with_its_place(formula: str, offset: int | None, words: str) -> None:
    with pytest.raises(FormulaError) as caught:
        to_mathml(formula, display=True)

    assert words in caught.value.message
    assert 0 <= caught.value.offset <= len(formula)
    if offset is not None:
        assert caught.value.offset == offset


@pytest.mark.parametrize(("formula", "words"), REFUSED)
def test_a_formula_may_not_reach_beyond_itself(formula: str, words: str) -> None:
    with pytest.raises(FormulaError, match=words.replace("\\", r"\\")):
        to_mathml(formula, display=True)


def test_a_line_break_before_a_word_is_no_command() -> None:
    assert "<mtable" in to_mathml(r"\begin{aligned} a \\let &= b \end{aligned}", display=True)


def test_a_formula_that_is_too_long_is_refused() -> None:
    with pytest.raises(FormulaError, match="split it"):
        to_mathml("x" * (MAX_FORMULA + 1), display=False)


@given(st.text(alphabet=st.sampled_from(list(r"<>&'\"abx{}^_$\ #%=/")), max_size=40))
def test_no_formula_can_bring_a_foreign_tag_into_the_page(formula: str) -> None:
    try:
        html = to_mathml(formula, display=False)
    except FormulaError:
        return
    tags = {element.tag for element in ET.fromstring(html).iter()}

    assert tags <= {"math", "mrow", "mi", "mo", "mn", "msup", "msub", "msubsup", "mspace", "mtext", "mpadded"}


def test_a_text_without_faults_has_no_problems() -> None:
    assert check_formulas(r"Rank $r$ costs \$5, `code $\foo$`, and $$a = b$$ is shown.") == []


def test_each_bad_formula_of_a_text_is_reported_at_its_place() -> None:
    text = r"A price of \$5, $x$, then $y + \foo$ and $$\bar$$."

    problems = check_formulas(text)

    assert problems[0][0] == text.index(r"\foo")
    assert len(problems) == 2
    assert r"\foo" in problems[0][1]
