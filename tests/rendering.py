"""Markdown rendered as the site renders it, taken apart, and searched for what must not be there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from typing import Any

import markdown  # type: ignore[import-untyped]
from mkdocs.config import load_config

from tests.roadmap import ROOT

PAYLOADS = [
    "<script>alert(1)</script>",
    "<ScRiPt src=//evil.example></sCrIpT>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'><iframe srcdoc='<script>alert(1)</script>'>",
    "[x](javascript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "{onclick=alert(1)}",
    "{: onmouseover=alert(1) style=position:fixed }",
    "&#x3c;script&#x3e;alert(1)&#x3c;/script&#x3e;",
    "&lt;script>alert(1)</script>",
    "<a href='javascript:alert(1)'>x</a>",
    "<style>*{display:none}</style>",
    "<base href=//evil.example>",
    "<meta http-equiv=refresh content=0;//evil.example>",
    "<form action=//evil.example><input name=q>",
    "</textarea></title><object data=//evil.example>",
    "`<script>alert(1)</script>`<script>alert(1)</script>",
    "$<script>alert(1)</script>$",
    "```\n</code></pre><script>alert(1)</script>\n```",
]

FORBIDDEN_TAGS = frozenset(
    [
        *("script", "style", "img", "iframe", "frame", "object", "embed", "applet", "base", "link", "meta", "form"),
        *("input", "textarea", "select", "option", "video", "audio", "source", "track", "picture", "template"),
        *("svg", "math", "foreignobject", "animate", "set", "use"),
    ]
)
ALIGNMENTS = {"text-align: left;", "text-align: center;", "text-align: right;"}  # of the cells of Markdown's tables
ADDRESSES = frozenset(
    {"href", "src", "action", "formaction", "data", "srcdoc", "srcset", "poster", "xlink:href", "cite"}
)


@dataclass
class Element:
    """An element of a page: its tag, its attributes, and the text that follows its start."""

    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    text: str = ""


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements:
            self.elements[-1].text += data

    def handle_comment(self, data: str) -> None:
        self.elements.append(Element("!comment", text=data))


def elements(html: str) -> list[Element]:
    """All elements of a piece of HTML, in order."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.elements


def text_of(found: list[Element]) -> str:
    """The text that a reader sees."""
    return "".join(element.text for element in found)


@cache
def _extensions() -> dict[str, Any]:
    config = load_config(str(ROOT / "mkdocs.yml"))
    return {"extensions": config["markdown_extensions"], "extension_configs": config["mdx_configs"]}


def render(text: str) -> str:
    """Markdown to HTML with the extensions of mkdocs.yml."""
    return str(markdown.Markdown(**_extensions()).convert(text))


def forbidden(found: list[Element], tags: frozenset[str] = FORBIDDEN_TAGS) -> list[str]:
    """Every tag, attribute or address that an author's text must not bring in."""
    wrong = []
    for element in found:
        if element.tag in tags or element.tag == "!comment":
            wrong.append(f"<{element.tag}>")
        for name, value in element.attributes.items():
            if name.startswith("on") or (name == "style" and value not in ALIGNMENTS):
                wrong.append(f"{element.tag}[{name}={value}]")
            if name in ADDRESSES and not _harmless(value or ""):
                wrong.append(f"{element.tag}[{name}={value}]")
    return wrong


def _harmless(address: str) -> bool:
    """Whether an address is https or stays on the site, read as leniently as browsers do."""
    seen = "".join(char for char in address if char > " ").lower()
    return seen.startswith("https://") or not re.match(r"[a-z][a-z0-9+.-]*:|[/\\]{2}", seen)
