"""What the site's pages need beside MkDocs: LaTeX as MathML, so that a page needs no script and no network."""

import html
import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

INLINE = re.compile(r'<span class="arithmatex">\\\((.+?)\\\)</span>', re.S)
ROLE = re.compile(r":(?:func|class|meth|mod):\s*(?=<code>)")  # Sphinx roles of the docstrings
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")  # a link of a page in docs/ to a file beside docs/
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.+?)\\\]\s*</div>', re.S)


def on_files(files: Files, config: Any) -> Files:
    """Each notebook is a page too, without its outputs."""
    for notebook in Path(config["docs_dir"]).glob("*.ipynb"):
        files.append(File.generated(config, f"{notebook.stem}.md", content=page_of(notebook)))
    return files


def page_of(notebook: Path) -> str:
    """Markdown of a notebook's cells."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(notebook.read_text())["cells"]]
    return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells)


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Links to notebooks lead to their pages. Files beside docs/ are not part of the site: their names stay."""
    markdown = markdown.replace(".ipynb)", ".md)")
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
