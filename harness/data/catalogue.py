"""Catalogue of datasets: titles, download sources, formats, and the paper's prompt templates."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import registry
from harness.commands import harness_command

_KNOWEDIT = "https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/main/benchmark"
_QAEDIT = (
    "https://raw.githubusercontent.com/WanliYoung/Revisit-Editing-Evaluation/d6025e0ee9731d3b59b84ea242dc06bf0e0c8a74"
)
_HALLUEDIT = "https://raw.githubusercontent.com/llm-editing/HalluEditBench/6bbd3337c5c72e996b147c187e57b0a753897d69"
_ROME = "https://rome.baulab.info/data/dsets"


@dataclass(frozen=True, slots=True)
class Download:
    """One upstream file.

    Attributes:
        url: download address.
        filename: local file name.
        licence: licence of the contents.
        sha256: checksum published upstream; None if there is none.
    """

    url: str
    filename: str
    licence: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What is known about a dataset before any file is read.

    Attributes:
        name: as written in a suite.
        title: as printed in a table.
        homepage: web page that describes the dataset.
        edited_formats: formats whose records can be used as edits, preferred one first; other formats of the dataset
            only provide unrelated facts.
        paper_template: prompt template for base models, containing `{Input}` (OnceEdit, Appendix A); None if the paper
            gives none for this dataset.
        downloads: the upstream files.
        has_distractors: whether rephrases may start with an unrelated sentence.
        advice: how to get the files if they cannot be downloaded; default: from the homepage.
        synthetic: generates records in the first of `edited_formats`, for `source: synthetic`; None if the dataset has
            no synthetic records.
    """

    name: str
    title: str
    homepage: str
    edited_formats: tuple[str, ...]
    paper_template: str | None = None
    downloads: tuple[Download, ...] = ()
    has_distractors: bool = False
    advice: str = ""
    synthetic: Callable[[], Sequence[Mapping[str, Any]]] | None = None

    def remedy(self, to: Path | None = None) -> str:
        """Command that downloads the files, to a folder if one is given, or advice if they cannot be downloaded."""
        if self.downloads:
            return harness_command("data", "fetch", self.name, to=to)
        return f"{self.advice or f'get it from {self.homepage}'} and pass its folder with --data"


def register_dataset(info: DatasetInfo) -> DatasetInfo:
    """Register a dataset so that suites can use it. Register its formats with `harness.data.formats.register_format`.

    Raises:
        ValueError: if another module has already registered the name.
    """
    return registry.datasets.add(info.name, info, sys._getframe(1).f_globals["__name__"])


def _generated(name: str) -> Sequence[Mapping[str, Any]]:
    from harness.data.synthetic import upstream_rows

    return upstream_rows(name)


register_dataset(
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
        synthetic=lambda: _generated("zsre"),
    )
)
register_dataset(
    DatasetInfo(
        name="counterfact",
        title="CounterFact",
        homepage="https://rome.baulab.info",
        edited_formats=("counterfact", "counterfact-flat"),
        paper_template="Complete this half sentence.\n [Half Sentence]: {Input}\n[Answer]:",
        downloads=(Download(f"{_ROME}/counterfact.json", "counterfact.json", "MIT"),),
        has_distractors=True,
        synthetic=lambda: _generated("counterfact"),
    )
)

register_dataset(
    DatasetInfo(
        name="wiki_counterfact",
        title="Wiki-counterfact",
        homepage="https://huggingface.co/datasets/zjunlp/KnowEdit",
        edited_formats=("wiki-counterfact",),
        downloads=(Download(f"{_KNOWEDIT}/wiki_counterfact/test_cf.json", "test_cf.json", "MIT"),),
        synthetic=lambda: _generated("wiki_counterfact"),
    )
)
register_dataset(
    DatasetInfo(
        name="wiki_recent",
        title="Wiki-recent",
        homepage="https://huggingface.co/datasets/zjunlp/KnowEdit",
        edited_formats=("wiki-recent",),
        downloads=(Download(f"{_KNOWEDIT}/wiki_recent/recent_test.json", "recent_test.json", "MIT"),),
    )
)
register_dataset(
    DatasetInfo(
        name="wikibio",
        title="WikiBio",
        homepage="https://huggingface.co/datasets/zjunlp/KnowEdit",
        edited_formats=("wikibio",),
        downloads=(Download(f"{_KNOWEDIT}/WikiBio/wikibio-test-all.json", "wikibio-test-all.json", "MIT"),),
    )
)
register_dataset(
    DatasetInfo(
        name="qaedit",
        title="QAEdit",
        homepage="https://github.com/WanliYoung/Revisit-Editing-Evaluation",
        edited_formats=("qaedit",),
        downloads=(Download(f"{_QAEDIT}/data/QAEdit_inter_1k.json", "QAEdit_inter_1k.json", "Apache-2.0"),),
    )
)
register_dataset(
    DatasetInfo(
        name="halluedit",
        title="HalluEditBench",
        homepage="https://github.com/llm-editing/HalluEditBench",
        edited_formats=("halluedit",),
        downloads=tuple(
            Download(
                f"{_HALLUEDIT}/data/questions/hallucination_final/llama_2_7b_chat_hf/{topic}.csv",
                f"{topic}.csv",
                "CC BY 4.0",
            )
            for topic in ("places_city", "human_scientist", "entertainment_song")
        ),
        synthetic=lambda: _generated("halluedit"),
    )
)
register_dataset(
    DatasetInfo(
        name="mquake",
        title="MQuAKE",
        homepage="https://github.com/princeton-nlp/MQuAKE",
        edited_formats=("mquake",),
        synthetic=lambda: _generated("mquake"),
    )
)
register_dataset(
    DatasetInfo(
        name="facts",
        title="Facts",
        homepage="docs/data.md#our-own-format",
        edited_formats=("facts",),
        advice="write a file of your facts (docs/data.md#our-own-format)",
    )
)
