"""What the site's pages need beside MkDocs: LaTeX as MathML, so that a page needs no script and no network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.+?)\\\)</span>', re.S)
ROLE = re.compile(r":(?:func|class|meth|mod):\s*(?=<code>)")  # Sphinx roles of the docstrings
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")  # a link of a page in docs/ to a file beside docs/
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.+?)\\\]\s*</div>', re.S)


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Files beside docs/ are not part of the site: their names stay, the links go."""
    return markdown if "/" in page.file.src_uri else OUTSIDE.sub(r"\1 (`\2`)", markdown)


def on_page_content(page_html: str, **_: object) -> str:
    page_html = ROLE.sub("", page_html)
    page_html = INLINE.sub(lambda found: mathml(found[1], "inline"), page_html)
    return BLOCK.sub(lambda found: mathml(found[1], "block"), page_html)


def mathml(latex: str, display: str) -> str:
    """MathML of an equation; a command that the converter does not know stops the build."""
    result = convert(html.unescape(latex), display=display)
    if unknown := re.search(r"\\[A-Za-z|]+", result):
        raise ValueError(f"unknown LaTeX command {unknown[0]} in: {html.unescape(latex)}")
    return result
