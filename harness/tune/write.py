"""The outcome of a search as a hyper-parameter file in which every value says how it was found."""

from datetime import UTC, datetime
from pathlib import Path

from harness import registry
from harness.errors import UserError
from harness.suite.hparams import find_file, folders_of, own_file, write_file
from harness.tune.study import Question, Result


def target(question: Question, model: str, to: Path | None, is_replaced: bool) -> Path:
    """Choose the file to write, before hours are spent on its content.

    Args:
        question: what is tuned.
        model: the model, after the scale was applied.
        to: the user's choice; by default the method's file for this model.
        is_replaced: whether an existing file may be replaced.

    Raises:
        UserError: if the file exists and may not be replaced.
    """
    method = registry.find_method(question.method, question.backend)
    path = to or own_file(folders_of(method), model)
    if path.exists() and not is_replaced:
        raise UserError(f"{path} already exists", fix="--force to replace it, or --to FILE to write another")
    return path


def write(result: Result, question: Question, path: Path) -> None:
    """Write the best values on top of the file that was in use, as the trials had them."""
    method = registry.find_method(question.method, question.backend)
    before = f" (before: {result.before.score:.3f})" if result.before else ""
    source = (
        f"tuned on dev: {result.best.edits} records of {question.dataset}, {result.trials} trials, Score by generation "
        f"{result.best.score:.3f}{before}; {question.command(result.trials)}; {datetime.now(UTC).date()}"
    )
    title = f"{method.spec.title} on {result.model}, written by `harness tune`."
    folders = folders_of(method)
    base = find_file(folders, result.model, result.architecture)
    write_file(path, base, folders[-1], result.values, source, title)
