"""No name can become markup, in any kind of file that a report consists of."""

import json
import re
import shutil
from html.parser import HTMLParser

import markdown_it
import pandas as pd
import pytest

from harness.store.store import Folder
from harness.store.verdicts import write_verdicts
from reports import html, latex, markdown
from reports.frame import load_suite
from reports.layout import Column, Section, Table, TableEntry, TableRow
from tests.helpers.hostile import NAMES

LATEX_TEXT = re.compile(r"(\\[&%$#_{}]|\\text[a-z]+\{\}|\\dots\{\}|\$\\?[a-zA-Z-]+\$|-\{\}|[^\\{}$&#^_~%<>|])*")
TAGS = {
    *("html", "head", "meta", "link", "title", "style", "script", "body", "header", "footer", "nav", "main", "section"),
    *(
        "h1",
        "h2",
        "h3",
        "h4",
        "p",
        "a",
        "dl",
        "dt",
        "dd",
        "article",
        "div",
        "details",
        "summary",
        "figure",
        "figcaption",
        "img",
    ),
    *("table", "thead", "tbody", "tr", "th", "td", "sup", "small", "code", "span"),
    *("form", "label", "input", "select", "button"),
}


def hostile_table():
    rows = tuple(TableRow(name, (TableEntry(0.5),)) for name in NAMES)
    columns = (Column(NAMES[0], group=NAMES[9]),)
    return Table("hostile", NAMES[10], " ".join(NAMES), columns, (Section(NAMES[29], rows, NAMES),), NAMES)


def test_fifty_different_names_are_tried():
    assert len(set(NAMES)) == 50


@pytest.mark.parametrize("name", NAMES)
def test_latex_leaves_no_special_character(name):
    assert LATEX_TEXT.fullmatch(latex.escape(name))


@pytest.mark.latex
def test_a_table_of_all_names_compiles(tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip(f"pdflatex is not installed ({latex.INSTALL_HINT})")
    tex = tmp_path / "hostile_table.tex"
    tex.write_text(latex.render([hostile_table()], "a test"), encoding="utf-8")
    assert latex.compile_pdf(tex).read_bytes().startswith(b"%PDF")


def test_markdown_shows_every_name_and_nothing_else():
    parser = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    rows, kinds = [], set()
    for block in parser.parse(markdown.render([hostile_table()])):
        inline = list(block.children or ())
        kinds |= {block.type, *(child.type for child in inline)}
        rows.append("".join(child.content for child in inline))
    shown = {" ".join(name.split()) for name in NAMES}
    assert shown <= set(rows)
    assert not {
        kind for kind in kinds if kind.startswith(("html", "code", "link", "image", "em_", "strong", "s_", "fence"))
    }


class Parsed(HTMLParser):
    """Tags, and texts outside of scripts and styles."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.attributes, self.scripts, self._raw = set(), [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self._raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self._raw = ""

    def handle_data(self, data):
        (self.scripts if self._raw else self.texts).append(data)


def hostile_page(fake):
    """A report with all names as method, model, setting, source, prompt, target and answer; some of judges."""
    fake.write_suite(methods=("none", "ft-l"), models=("tiny/llama",), data=("zsre",))
    for name in fake.cells:
        folder = fake.root / "cells" / name
        cell = json.loads((folder / "cell.json").read_text())
        cell["method"] |= {
            "title": NAMES[29],
            "hparams": dict.fromkeys(NAMES, NAMES[30]),
            "sources": {name: name for name in NAMES},
        }
        cell["model"]["title"] = NAMES[31]
        (folder / "cell.json").write_text(json.dumps(cell))
        rows = pd.read_parquet(folder / "records.parquet")
        for column in ("prompt", "target", "predicted"):
            rows[column] = [NAMES[place % len(NAMES)] for place in range(len(rows))]
        rows.to_parquet(folder / "records.parquet")
        for judge in NAMES[:2]:
            said = rows.assign(judge=judge, judge_prompt=NAMES[3], judge_reply=NAMES[4], verdict=1.0)
            write_verdicts(Folder(folder), said, judge)
    frame = load_suite(fake.root, "main_table", "mini")
    return html.render(frame, [hostile_table()], [html.Drawing(NAMES[31], b"<svg/>")])


def test_html_shows_every_name_as_text_and_has_only_its_own_tags(fake):
    page = Parsed(hostile_page(fake))
    assert page.tags <= TAGS
    assert set(NAMES) <= set(page.texts)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert {f"verdict of {name}" for name in NAMES[:2]} <= set(page.texts)
    answers = json.loads(page.scripts[-2])
    assert answers["judges"] == list(NAMES[:2])
    assert set(NAMES) <= set(answers["strings"])
