"""The data sets by name: titles, where they come from, which file is edited, and the paper's prompt templates."""

from dataclasses import dataclass

from harness.errors import UserError, did_you_mean

_KNOWEDIT = "https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/main/benchmark"
_ROME = "https://rome.baulab.info/data/dsets"


@dataclass(frozen=True, slots=True)
class Download:
    """One upstream file.

    Attributes:
        url: where it is.
        filename: what it is called here.
        licence: of its contents.
        sha256: checksum that upstream publishes; None where it publishes none.
    """

    url: str
    filename: str
    licence: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What is known of a data set before any file is read.

    Attributes:
        name: as written in a suite.
        title: as printed in a table.
        homepage: where people read about it.
        edited_formats: formats whose records can be edits, the preferred one first; the data set's other formats
            only serve as unrelated facts.
        paper_template: prompt around a base model's input, `{Input}` in it (OnceEdit, Appendix A).
        downloads: the upstream files.
        has_distractors: whether rephrases may begin with an unrelated sentence.
    """

    name: str
    title: str
    homepage: str
    edited_formats: tuple[str, ...]
    paper_template: str
    downloads: tuple[Download, ...]
    has_distractors: bool = False


DATASETS = {
    info.name: info
    for info in (
        DatasetInfo(
            name="zsre",
            title="ZsRE",
            homepage="https://huggingface.co/datasets/zjunlp/KnowEdit",
            edited_formats=("knowedit", "mend"),
            paper_template="Answer this question:\n[Question]: {Input}\n[Answer]:",
            downloads=(
                Download(f"{_KNOWEDIT}/ZsRE/ZsRE-test-all.json", "ZsRE-test-all.json", "MIT"),
                Download(f"{_ROME}/zsre_mend_train.json", "zsre_mend_train.json", "MIT; locality CC BY-SA 3.0"),
            ),
        ),
        DatasetInfo(
            name="counterfact",
            title="CounterFact",
            homepage="https://rome.baulab.info",
            edited_formats=("counterfact", "counterfact-flat"),
            paper_template="Complete this half sentence.\n [Half Sentence]: {Input}\n[Answer]:",
            downloads=(Download(f"{_ROME}/counterfact.json", "counterfact.json", "MIT"),),
            has_distractors=True,
        ),
    )
}


def dataset_info(name: str) -> DatasetInfo:
    """The catalogue entry of a data set.

    Raises:
        UserError: when there is none.
    """
    if name not in DATASETS:
        raise UserError(
            f"unknown data set '{name}'{did_you_mean(name, set(DATASETS))}", fix="python -m harness data list"
        )
    return DATASETS[name]
