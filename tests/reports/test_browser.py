"""The HTML report in a real browser: it loads without a complaint, sorts, filters, and runs nothing that a name says."""

import shutil

import pandas as pd
import pytest

from harness.store.store import Folder
from harness.store.verdicts import write_verdicts
from reports import html
from reports.frame import load_suite
from reports.tables.quality import main
from tests.reports.test_escaping import hostile_page

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium: the one on the path, else Playwright's own."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install 'editing-harness[browser]'"
    )
    with playwright.sync_playwright() as started:
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        try:
            browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(
                f"no browser ({str(error).splitlines()[0]}): apt-get install chromium, or playwright install chromium"
            )
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """Open a page from a file without a network; at the end, nothing may have been said in its console."""
    said, context = [], chromium.new_context(offline=True)

    def open_page(text):
        file = tmp_path / "report.html"
        file.write_text(text, encoding="utf-8")
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(file.as_uri())
        return page

    yield open_page
    context.close()
    assert said == []


def column(page, table, index):
    return page.eval_on_selector_all(
        f"{table} tbody tr", f"rows => rows.map(row => row.cells[{index}].textContent.trim())"
    )


def test_tables_sort_and_answers_are_filtered(opened, fake):
    fake.write_suite(data=("zsre",))
    frame = load_suite(fake.root, "main_table", "mini")
    page = opened(html.render(frame, main(frame)[0], []))
    assert page.locator("#answer-disputed").count() == 0, "nothing has been judged"

    table = "article.table >> nth=0 >> table"
    page.click(f"{table} >> thead >> button:text-is('Score')")
    assert column(page, "article.table:first-of-type table:first-of-type", 0) == ["OnceEdit", "FT-L", "Unedited"]
    page.click(f"{table} >> thead >> button:text-is('Score')")
    assert column(page, "article.table:first-of-type table:first-of-type", 0) == ["Unedited", "FT-L", "OnceEdit"]
    page.click(f"{table} >> thead >> button:text-is('Freq')")
    assert column(page, "article.table:first-of-type table:first-of-type", 0)[-1] == "Unedited", (
        "a missing number is last"
    )

    page.fill("#find-cell", "ft-l gpt-j")
    assert page.inner_text("#cell-count") == "1 of 9 cells"
    page.click("details.cell:not([hidden]) summary")
    page.click("details.cell:not([hidden]) button.open-answers")
    assert page.locator("#answer-cell option:checked").text_content().startswith("FT-L · GPT-J-6B")
    page.select_option("#answer-protocol", label="generation")
    page.select_option("#answer-axis", label="reliability")
    assert page.inner_text("#answer-count") == "50 of 500 answers"
    page.check("#answer-wrong")
    wrong = column(page, "#answer-table", 7)
    assert 0 < len(wrong) < 50
    assert "1.00" not in wrong
    page.click("#answer-table thead >> button:text-is('score')")
    assert column(page, "#answer-table", 7) == sorted(wrong, reverse=True)
    page.fill("#answer-text", "no such text")
    assert page.inner_text("#answer-count") == "0 of 500 answers"


def test_answers_on_which_a_judge_and_exact_match_differ_are_found(opened, fake):
    """Of the answers of one cell, a judge disagrees about the fourth, and says nothing of the others from the sixth on."""
    fake.write_suite(methods=("none", "ft-l"), models=("tiny/llama",), data=("zsre",))
    (name,) = (name for name in fake.cells if name.startswith("ft-l"))
    rows = pd.read_parquet(fake.root / "cells" / name / "records.parquet").head(5)
    verdicts = [*rows["exact"][:3], 1 - rows["exact"][3], float("nan")]
    said = rows.assign(judge="a/judge", judge_prompt="?", judge_reply="!", verdict=verdicts)
    write_verdicts(Folder(fake.root / "cells" / name), said, "a/judge")
    page = opened(html.render(load_suite(fake.root, "main_table", "mini"), [], []))
    page.fill("#find-cell", "ft-l")
    page.click("details.cell:not([hidden]) summary")
    page.click("details.cell:not([hidden]) button.open-answers")
    words = ["correct" if verdict else "incorrect" for verdict in verdicts[:4]]
    assert column(page, "#answer-table", 8)[:6] == [*words, "–", "–"]
    page.check("#answer-disputed")
    assert page.inner_text("#answer-count").startswith("1 of ")
    assert column(page, "#answer-table", 8) == words[3:4]
    assert column(page, "#answer-table", 3) == [rows["prompt"][3]]


def test_names_are_shown_as_they_are_and_run_nothing(opened, fake):
    page = opened(hostile_page(fake))
    assert page.evaluate("window.hacked") is None
    page.fill("#answer-text", "onerror")
    assert "<img src=x onerror=window.hacked=3>" in column(page, "#answer-table", 3)
    assert page.evaluate("window.hacked") is None
