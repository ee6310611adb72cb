"""All numbers of a suite as one data frame, for notebooks and for `harness results`."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack, get_args

from harness.store.manifest import Options

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["csv", "json", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)

COLUMNS = {
    "suite": "name of the suite",
    "scale": "`paper` for the suite as written, otherwise the scale",
    "cell": "folder of the cell in the store",
    "label": "name of the method's entry in the suite",
    "method": "name of the method",
    "variant": "variant of its hyper-parameters; missing without one",
    "backend": "implementation",
    "model": "name of the target model",
    "dataset": "name of the dataset",
    "template": "prompt template",
    "schedule": "`batch` or `sequential`",
    "edits": "number of edits",
    "seed": "seed",
    "protocol": "how questions were asked",
    "reliability": "score of the edits themselves, in [0, 1], as are all scores",
    "generality": "score of their rephrases",
    "locality": "agreement with the unedited model on the records' locality prompts",
    "locality_unrelated": "the same on facts of other records",
    "portability": "score of what follows from the edits",
    "robustness": "score of the edits asked again after the user challenges the answer",
    "single_hop": "score of the single facts that multi-hop questions combine",
    "score": "mean of reliability, generality and locality",
    "reliability_exact": "share of edits whose target is predicted exactly",
    "generality_exact": "the same of rephrases",
    "setup_s": "seconds of what the method needs before any edit",
    "edit_s": "seconds of all edits",
    "attach_s": "seconds of attaching a shared edit to the model",
    "attach_per_edit_run_s": "the part of it that another edit run takes again; missing where it is not known",
    "evaluate_s": "seconds of all questions under all protocols",
    "edit_s_per_edit": "seconds per edit",
    "edit_time_vs_onceedit": "`edit_s` as a multiple of OnceEdit's on the same model and data; missing across device classes",
    "time_from_scratch_vs_onceedit": "the same of `setup_s`, `edit_s` and `attach_s` together",
    "break_even_edits": "smallest number of edits for which OnceEdit is at least as fast from scratch; infinite if for none",
    "break_even_edits_until": "largest such number: infinite if there is no end, 0 if for none",
    "break_even_models": "smallest number of models for which OnceEdit is at least as fast from scratch; infinite if for none",
    "break_even_models_until": "largest such number: infinite if there is no end, 0 if for none",
    "flops_setup": "FLOPs of the phase, counted; missing where they are not known",
    "flops_edit": "FLOPs of all edits",
    "flops_attach": "FLOPs of attaching",
    "flops_evaluate": "FLOPs of all questions",
    "flops_per_edit": "FLOPs per edit",
    "flops_per_prompt": "FLOPs of reading a prompt and generating one token",
    "flops_per_token": "FLOPs of each token generated after that",
    "formula_attach": "FLOPs of attaching by the formulas of the paper",
    "formula_per_token": "FLOPs of one token of the target model by the same",
    "formula_attach_in_tokens": "attaching in tokens of the target model",
    "peak_memory_bytes": "peak memory of the cell",
    "peak_memory_with_artifacts_bytes": "the same, or of building one of its artifacts if that is more; missing if unknown",
    "device_class": "what times were measured on, except for those of artifacts from another machine",
    "shared_by": "maximum number of processes on the device while times were measured; do not quote those of several",
    "citable": "whether no measurement was interrupted",
    "commit": "commit of this project that computed the cell",
}
"""Columns of the results and what they hold."""

NAMES = {"data": "dataset", "rel": "reliability", "gen": "generality", "loc": "locality", "avg": "score"}
NAMES |= {"loc_unrelated": "locality_unrelated", "port": "portability", "robust": "robustness", "hops": "single_hop"}
NAMES |= {"rel_exact": "reliability_exact", "gen_exact": "generality_exact"}
"""Columns of `SuiteFrame.cells` that are named otherwise here."""


def load_results(store: Path | str, suite: str, scale: str = "paper", **options: Unpack[Options]) -> "pd.DataFrame":
    """One row per finished cell and protocol of a suite, with the columns of `COLUMNS`.

    Args:
        store: folder of the store.
        suite: name of the suite.
        scale: of the run.
        options: of the run, as on the command line: `data`, `edits`, `backend`.

    Raises:
        UserError: if the suite was not run like that, none of its cells is finished, or a file cannot be read.
    """
    from reports.costs import normalised
    from reports.frame import load_suite

    frame = load_suite(Path(store), suite, scale, **options)
    cells = frame.cells.rename(columns=NAMES).join(normalised(frame), on="cell")
    cells.insert(0, "suite", frame.manifest.suite)
    cells.insert(1, "scale", frame.manifest.scale)
    return cells[list(COLUMNS)].reset_index(drop=True)


def as_bytes(results: "pd.DataFrame", form: Format) -> bytes:
    """Results in a file format; JSON is a list of objects, in which a missing value is null."""
    if form == "csv":
        return results.to_csv(index=False).encode()
    if form == "json":
        return results.to_json(orient="records", indent=1, force_ascii=False).encode() + b"\n"
    written = io.BytesIO()
    results.to_parquet(written, index=False)
    return written.getvalue()
