"""All pages: suites that load, commands and options that exist, links that lead somewhere."""

import re
import shlex

import pytest
import typer

from harness.cli import app
from harness.suite import load_suite
from harness.suite.collection import read_collection
from harness.suite.load import find_suite
from tests.docs.pages import DOCS, files
from tests.helpers.commands import ROOT

PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
EXAMPLES = ("add-a-method.md", "add-a-dataset.md")
"""Pages whose suites need their plug-ins; `test_examples` loads them."""


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request):
    return request.param


def blocks(page, *languages):
    return [body for language, body in _BLOCK.findall(page.read_text()) if language in languages]


def commands(page):
    """The words after `harness` of each command of a page, whether in a block or in a sentence."""
    lines = [line for body in blocks(page, "console", "bash") for line in body.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`((?:python -m )?harness [^`]+)`", _BLOCK.sub("", page.read_text()))
    for line in [*lines, *(" ".join(each.split()) for each in inline)]:
        if found := re.match(r"(?:\$ )?(?:\.venv/bin/)?(?:python -m )?harness +(.+)", line):
            yield shlex.split(found.group(1), comments=True)


def test_every_command_and_option_exists(page):
    for words in commands(page):
        command = typer.main.get_command(app)
        context = typer.Context(command)
        names = [word for word in words if not word.startswith("-")]
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        known = {option for parameter in command.get_params(context) for option in parameter.opts}
        while hasattr(command, "get_command") and names:
            verb = names.pop(0)
            for one in re.split("[|,]", verb):  # `data list|show`
                assert command.get_command(context, one), f"{page.name}: harness {' '.join(words)}: no verb '{one}'"
            command = command.get_command(context, re.split("[|,]", verb)[0])
            known |= {option for parameter in command.get_params(context) for option in parameter.opts}
        for option in options:
            for one in option.split("|"):
                spelt = one if one.startswith("--") else f"--{one}"
                assert spelt in known, f"{page.name}: harness {' '.join(words)}: no option '{spelt}'"


def options(command, name="harness"):
    context = typer.Context(command)
    for verb in command.list_commands(context) if hasattr(command, "list_commands") else ():
        yield from options(command.get_command(context, verb), f"{name} {verb}")
    yield from ((name, option) for parameter in command.get_params(context) for option in parameter.opts)


def test_every_option_is_in_some_page():
    text = "".join(page.read_text() for page in PAGES if page.name != "CHANGELOG.md")
    named = set(re.findall(r"--[a-z-]+", text)) | {"--show-completion"}
    found = {(name, option) for name, option in options(typer.main.get_command(app)) if option.startswith("--")}
    assert not {f"{name} {option}" for name, option in found if option not in named}


def test_every_suite_loads(page, tmp_path):
    for body in blocks(page, "yaml"):
        if not body.startswith("name:") or page.name in EXAMPLES:
            continue
        suite = tmp_path / "suite.yaml"
        suite.write_text(re.sub(r"path: [^,}\n]+", f"path: {tmp_path}", body))
        collection = read_collection(suite)
        for file in [find_suite(name) for name in collection.suites] if collection else [suite]:
            assert load_suite(file).methods


def test_every_link_leads_to_a_page_and_heading(page):
    for target in _LINK.findall(_BLOCK.sub("", page.read_text())):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor:
            headings = {slug(heading) for heading in _HEADING.findall(_BLOCK.sub("", linked.read_text()))}
            assert anchor in headings, f"{page.name}: {target}"


def slug(heading):
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")


def test_every_repository_path_that_a_page_names_exists(page):
    text = _BLOCK.sub("", page.read_text())
    own = set(files(page.name)) if page.parent == DOCS else set()
    for path in re.findall(r"`((?:harness|methods|reports|slurm|suites|tests|benchmarks|docs)/[\w./-]+)`", text):
        if path not in own and page.name != "CHANGELOG.md":
            assert (ROOT / path).exists(), f"{page.name}: {path}"
