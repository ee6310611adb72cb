"""Export results in the schema of Every Eval Ever, version 0.3.0 (github.com/evaleval/every_eval_ever).

Each finished cell becomes a JSON file with a result per protocol and axis, and a JSON Lines file with all its answers, where
that project's datastore has them: `data/<suite>/<developer>/<model>/<uuid>.json` and `<uuid>_samples.jsonl`. The UUID follows
from the cell, so that exporting again replaces the files.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import registry
from harness.files import understood, write_bytes
from harness.models.catalogue import ModelRef
from harness.store.answers import with_unedited
from harness.store.store import Folder, Store
from reports.checklist import PACKAGE, Parts, as_markdown, checklist, parts_of
from reports.common import protocol_title
from reports.frame import SuiteFrame
from reports.results import COLUMNS, NAMES
from reports.scores import cell_scores
from reports.stats import LEVEL, RESAMPLES, Estimate

SCHEMA_VERSION = "0.3.0"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Exported:
    """Files of an export.

    Attributes:
        folder: of all files of the suite.
        checklist: the page for the NeurIPS checklist.
        evaluations, samples: how many there are.
    """

    folder: Path
    checklist: Path
    evaluations: int
    samples: int


def export(frame: SuiteFrame, to: Path, organization: str) -> Exported:
    """Write all finished cells of a suite, except those without scores.

    Args:
        frame: the suite.
        to: folder in which `data/` is, or is made.
        organization: who ran the suite, as `source_metadata.source_organization_name`.
    """
    store, suite = Store(frame.store), frame.manifest.name
    cells, samples = list[Parts](), 0
    for name in frame.cells["cell"].unique():
        folder = store.cell(str(name))
        with understood(folder.path):
            parts = parts_of(folder)
        samples += _Evaluation(frame, folder, parts).write(to, organization)
        cells.append(parts)
    page = to / f"checklist-{suite}.md"
    write_bytes(page, as_markdown(suite, checklist(cells)).encode())
    return Exported(to / "data" / suite, page, len(cells), samples)


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """One finished cell."""

    frame: SuiteFrame
    folder: Folder
    parts: Parts

    @property
    def name(self) -> str:
        """Also the name of its results, before protocol and axis."""
        return f"{self.frame.manifest.suite}.{self.parts['cell']['data']['name']}"

    @property
    def model_id(self) -> str:
        """`developer/model`, the id of the unedited model: which method edited it is in the id of the evaluation."""
        model = self.parts["cell"]["model"]
        owner = "local" if model["weights"] == "pretrained" else PACKAGE
        return self._published or f"{owner}/{model['name'].replace('/', '-')}"

    @property
    def _published(self) -> str:
        """The hub id that the unedited model is known by; empty for one that is not on the hub."""
        model, loaded = self.parts["cell"]["model"], self.parts["provenance"].get("models", ())
        if model["weights"] != "pretrained":
            return ""
        of_hub = (each["source"] for each in loaded if each["name"] == model["name"] and each["revision"])
        published = ModelRef(model["name"], "pretrained", next(of_hub, "")).published
        return published if published.count("/") == 1 else ""

    @property
    def evaluation_id(self) -> str:
        """Names suite, model and cell, and so does not change when the export is repeated."""
        return f"{self.frame.manifest.name}/{self.model_id}/{self.folder.path.name}"

    def write(self, to: Path, organization: str) -> int:
        """Write both files; return the number of samples."""
        stem = str(uuid.UUID(bytes=bytes.fromhex(self.parts["cell"]["cell_id"])[:16], version=4))
        path = f"data/{self.frame.manifest.name}/{self.model_id}/{stem}_samples.jsonl"
        lines = [json.dumps(sample, ensure_ascii=False) for sample in self._samples()]
        samples = "".join(f"{line}\n" for line in lines).encode()
        details = {
            "format": "jsonl",
            "file_path": path,
            "hash_algorithm": "sha256",
            "checksum": hashlib.sha256(samples).hexdigest(),
            "total_rows": len(lines),
        }
        aggregate = {**self._about(organization), "detailed_evaluation_results": details}
        write_bytes(to / path, samples)
        text = json.dumps(aggregate, indent=1, ensure_ascii=False, allow_nan=False)
        write_bytes((to / path).with_name(f"{stem}.json"), f"{text}\n".encode())
        return len(lines)

    def _about(self, organization: str) -> Json:
        cell, origin = self.parts["cell"], self.parts["provenance"]
        return {
            "schema_version": SCHEMA_VERSION,
            "evaluation_id": self.evaluation_id,
            "evaluation_timestamp": origin["finished"],
            "retrieved_timestamp": str(int(time.time())),
            "source_metadata": {
                "source_name": f"{PACKAGE}: {self.frame.manifest.name}",
                "source_type": "evaluation_run",
                "source_organization_name": organization,
                "evaluator_relationship": "third_party",
                "additional_details": {
                    f"neurips_checklist: {item}": text for item, text in checklist([self.parts]).items()
                },
            },
            "eval_library": {
                "name": PACKAGE,
                "version": origin["packages"].get(PACKAGE) or "unknown",
                "additional_details": _texts({"commit": origin["commit"], "uncommitted_changes": origin["dirty"]}),
            },
            "model_info": {
                "name": f"{cell['model']['title']} edited by {cell['method']['title']}"
                if cell["method"]["edits"]
                else cell["model"]["title"],
                "id": self.model_id,
                "developer": self.model_id.partition("/")[0],
                "inference_engine": {"name": "transformers", "version": origin["packages"].get("transformers", "")},
                "additional_details": {
                    "deployment_type": "self_deployed",
                    "model_availability": "open_weights" if self._published else "unknown",
                    **_texts({part: cell[part] for part in ("label", "method", "model", "schedule", "seed")}),
                },
            },
            "evaluation_results": list(self._results()),
        }

    def _results(self) -> Iterator[Json]:
        """One per protocol and axis, and one for the mean of reliability, generality and locality."""
        of_cell = self.frame.cells[self.frame.cells["cell"] == self.folder.path.name]
        for row in of_cell.to_dict("records"):
            for column, estimate in cell_scores(self.frame, row["cell"], row["protocol"]).items():
                if estimate.value == estimate.value:  # an axis without probes has no score
                    yield self._result(row, column, estimate)

    def _result(self, row: Mapping[Any, Any], column: str, estimate: Estimate) -> Json:
        cell, origin, protocol, axis = self.parts["cell"], self.parts["provenance"], row["protocol"], NAMES[column]
        of_axis = self.frame.records[
            (self.frame.records["cell"] == row["cell"])
            & (self.frame.records["protocol"] == protocol)
            & (self.frame.records["axis"] == column)
        ]
        exact = row.get(f"{column}_exact")
        return {
            "evaluation_result_id": f"{protocol}.{axis}",
            "evaluation_name": f"{self.name}.{protocol}.{axis}",
            "evaluation_timestamp": origin["finished"],
            "source_data": self._source(),
            "metric_config": {
                "evaluation_description": f"{COLUMNS[axis]}; {protocol_title(protocol)}",
                "metric_id": f"{PACKAGE}.{axis}",
                "metric_name": axis.replace("_", " "),
                "metric_kind": "accuracy",
                "metric_unit": "proportion",
                "lower_is_better": False,
                "score_type": "continuous",
                "min_score": 0.0,
                "max_score": 1.0,
            },
            "score_details": {
                "score": estimate.value,
                "details": _texts({} if exact is None or exact != exact else {"exact_match": float(exact)}),
                "uncertainty": {
                    "confidence_interval": {
                        "lower": estimate.low,
                        "upper": estimate.high,
                        "confidence_level": LEVEL,
                        "method": "BCa bootstrap of records, those about one subject together",
                    },
                    "num_bootstrap_samples": RESAMPLES,
                    **({"num_samples": len(of_axis)} if len(of_axis) else {}),
                },
            },
            "generation_config": {
                "generation_args": {
                    "temperature": 0.0,
                    "execution_command": origin["command"],
                    "prompt_template": cell["data"]["template"],
                },
                "additional_details": _texts({"protocol": protocol, "eval_batch": cell["eval_batch"]}),
            },
        }

    def _source(self) -> Json:
        data = self.parts["cell"]["data"]
        files = self.parts["provenance"].get("data_files", {})
        details = {**data, "files": {Path(file).name: sha256 for file, sha256 in files.items()}}
        info = registry.datasets.get(data["name"]) if data["name"] in registry.datasets else None
        urls = [each.url for each in info.downloads if each.filename in details["files"]] if info else []
        kind = {"source_type": "url", "url": urls} if urls else {"source_type": "other"}
        return {"dataset_name": data["title"], **kind, "additional_details": _texts(details)}

    def _samples(self) -> Iterator[Json]:
        """All answers. What is right for locality is what the unedited model answers, where the store knows that."""
        for row in with_unedited(Store(self.frame.store), self.folder).to_dict("records"):
            is_compared = row["axis"].startswith("locality") and row["unedited"] is not None
            asked = {"raw": row["prompt"], "reference": [row["unedited"] if is_compared else row["target"]]}
            yield {
                "schema_version": SCHEMA_VERSION,
                "evaluation_id": self.evaluation_id,
                "model_id": self.model_id,
                "evaluation_name": f"{self.name}.{row['protocol']}.{row['axis']}",
                "evaluation_result_id": f"{row['protocol']}.{row['axis']}",
                "sample_id": f"{row['record_id']}/{row['axis']}/{row['probe']}",
                "sample_hash": hashlib.sha256(
                    json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()
                ).hexdigest(),
                "interaction_type": "single_turn",
                "input": asked,
                "output": {"raw": [row["predicted"]]},
                "answer_attribution": [
                    {
                        "turn_idx": 0,
                        "source": "output.raw",
                        "extracted_value": row["predicted"],
                        "extraction_method": row["protocol"],
                        "is_terminal": True,
                    }
                ],
                "evaluation": {"score": row["score"], "is_correct": bool(row["exact"] == 1)},
                "metadata": _texts({"target": row["target"], "unedited": row["unedited"] or ""}),
            }


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Details, which have to be texts in this schema; anything else becomes JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
    }
