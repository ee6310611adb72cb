"""The command judge: verdicts of a language model on the free-form answers of a suite."""

from functools import partial
from typing import TYPE_CHECKING

import typer

from harness.cli_results import name_of_run
from harness.cli_shared import RunOptions, each_suite, new_console, with_options
from harness.commands import harness_command
from harness.errors import UserError
from harness.plain_text import counted

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress

    from harness.judge.judging import Judged
    from harness.store.store import Folder
    from harness.suite.schema import JudgeForm

app = typer.Typer()


@app.command()
@with_options(RunOptions)
def judge(options: RunOptions) -> int:
    """Let a language model judge the free-form answers of finished cells; answers already judged are not sent again."""
    console = new_console()

    def judge_one(one: RunOptions) -> int:
        from harness.store.manifest import find_manifest
        from harness.store.store import Store
        from harness.suite.load import find_suite
        from harness.suite.source import read_form

        file = find_suite(one.suite)
        form = read_form(file)[1].judge
        if form is None:
            raise UserError(
                f"{file}: the suite names no judge",
                fix="judge: {url: http://127.0.0.1:8000/v1, model: NAME} in the suite",
            )
        name = name_of_run(one, "judge", console)
        manifest = find_manifest(one.store, name, one.scale, **one.variant)
        finished = [folder for each in manifest.cells if (folder := Store(one.store).cell(each)).is_done]
        if not finished:
            raise UserError(
                f"{one.store}: none of the {len(manifest.cells)} cells of {manifest.name} is finished",
                fix=manifest.again("run", one.store),
            )
        if not _judge(form, finished, one.store, console):
            raise UserError(
                f"{manifest.name}: no answers to judge, because none of its protocols lets models write freely",
                fix="protocols: [natural, natural_instruct] in the suite",
            )
        if len(finished) < len(manifest.cells):
            _say(console, f"{len(manifest.cells) - len(finished)} of {len(manifest.cells)} cells are not finished")
        _say(console, f"agreement with exact match: {manifest.again('report', one.store)}")
        return 0

    return each_suite(options, judge_one, console)


def _judge(form: "JudgeForm", cells: "list[Folder]", store: "Path", console: "Console") -> int:
    """Judge cells one after the other; the number of answers."""
    from harness.judge.judging import Judge
    from harness.store.store import Store
    from harness.store.verdicts import kept_replies

    answers = 0
    with kept_replies(Store(store)) as replies, _progress(console) as progress:
        judge = Judge(form, replies)
        _say(console, f"judge {form.model} at {form.url}")
        for folder in cells:
            task = progress.add_task(folder.path.name, total=None)
            found = judge.cell(Store(store), folder, partial(progress.update, task))
            progress.remove_task(task)
            if found:
                answers += found.answers
                _say(console, f"{folder.path.name}: {_sentence(found)}")
            if found and found.without_verdict:
                shown = harness_command("answers", folder.path.name, json=True, store=store)
                _say(console, f"  the first reply without a verdict is '{found.example}'; all: {shown}")
    return answers


def _progress(console: "Console") -> "Progress":
    """Bars in a terminal; nothing in a file."""
    from rich.progress import Progress

    return Progress(console=console, transient=True, disable=not console.is_terminal)


def _sentence(found: "Judged") -> str:
    parts = [f"{counted(found.answers, 'answer')} judged, {counted(found.asked, 'new request')}"]
    if found.without_verdict:
        parts.append(f"{found.without_verdict:,} without a verdict")
    if found.no_reference:
        parts.append(f"{found.no_reference:,} left out, because there is no unedited answer to compare with")
    return ", ".join(parts)


def _say(console: "Console", text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
