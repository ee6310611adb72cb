"""A store like one that a run leaves behind, with known scores in every cell and nothing run."""

import hashlib
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.evaluation.scope import summary

MODELS = {
    "tiny/llama": "Llama2-7B (mini)",
    "tiny/mistral": "Mistral-7B-v0.1 (mini)",
    "tiny/gptj": "GPT-J-6B (mini)",
}
DATA = {"zsre": "ZsRE", "counterfact": "CounterFact"}
METHODS = {"none": "Unedited", "ft-l": "FT-L", "onceedit": "OnceEdit"}
CHANCES = {
    "none": {"reliability": 0.02, "generality": 0.03, "locality": 1.0, "locality_unrelated": 1.0},
    "ft-l": {"reliability": 0.6, "generality": 0.35, "locality": 0.4, "locality_unrelated": 0.8},
    "onceedit": {"reliability": 0.98, "generality": 0.75, "locality": 0.85, "locality_unrelated": 0.97},
}
"""Probability of a correct answer, by method and axis."""

SCOPES = {
    "onceedit": {
        "reliability": (19.0, 1.0),
        "generality": (4.0, 2.0),
        "locality": (2.0, 4.0),
        "locality_unrelated": (1.0, 19.0),
    }
}
"""Beta distributions of the routing score of a question, by method and axis; other methods have none."""

PROTOCOLS = ("teacher_forced", "generation")
EDIT_S = {"none": 0.0, "ft-l": 4.0, "onceedit": 2.0}


class FakeStore:
    """Writes cells one by one; `write_suite` writes those of a whole suite and its manifest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cells: list[str] = []
        self.unresolved: dict[str, str] = {}
        self.asked: set[str] = set()

    def write_suite(
        self,
        *,
        methods: Sequence[str] = tuple(METHODS),
        models: Sequence[str] = tuple(MODELS),
        data: Sequence[str] = tuple(DATA),
        templates: Sequence[str] = ("none",),
        seeds: Sequence[int] = (0,),
        tables: Sequence[str] = ("main",),
        figures: Sequence[str] = (),
    ) -> "FakeStore":
        for name, method, model, template, seed in itertools.product(data, methods, models, templates, seeds):
            self.write_cell(method, model, name, template=template, seed=seed)
        self.write_manifest(tables, figures)
        return self

    def write_manifest(self, tables: Sequence[str] = ("main",), figures: Sequence[str] = ()) -> None:
        content = {
            "suite": "main_table",
            "scale": "mini",
            "created": "2026-01-02T03:04:05+00:00",
            "command": "python -m harness run suites/main_table.yaml --scale mini",
            "tables": list(tables),
            "figures": list(figures),
            "cells": self.cells,
            "file": "installed:main_table.yaml",
            "unresolved": [
                {"stem": stem, "reason": reason, "was_asked": stem in self.asked}
                for stem, reason in self.unresolved.items()
            ],
        }
        path = self.root / "suites" / "main_table.mini.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def write_cell(
        self,
        method: str,
        model: str,
        data: str,
        *,
        template: str = "none",
        seed: int = 0,
        variant: str | None = None,
        label: str | None = None,
        backend: str = "native",
        chances: Mapping[str, float] | None = None,
        scopes: Mapping[str, tuple[float, float]] | None = None,
        records: int = 50,
        edit_actions: Sequence[str] | None = None,
        cost: Mapping[str, Any] | None = None,
        hparams: Mapping[str, Any] | None = None,
        data_settings: Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
    ) -> Path:
        """One finished cell; returns its folder."""
        label = label or (f"{method}.{variant}" if variant else method)
        cell: dict[str, Any] = {
            "label": label,
            "method": {
                "name": method,
                "title": METHODS[method],
                "variant": variant,
                "backend": backend,
                "version": 1,
                "edits": method != "none",
                "hparams": hparams or {"layers": [3], "optimiser": {"lr": 5e-4}},
                "sources": {"layers": "measured"},
            },
            "model": {"name": model, "title": MODELS[model], "weights": "trained"},
            "data": {
                "name": data,
                "title": DATA[data],
                "sha256": hashlib.sha256(data.encode()).hexdigest(),
                "split": "test",
                "edits": records,
                "template": template,
                **(data_settings or {}),
            },
            "protocols": dict.fromkeys(PROTOCOLS, 1),
            "schedule": dict(schedule or {"kind": "batch"}),
            "seed": seed,
            "eval_batch": 64,
        }
        cell["cell_id"] = hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()
        folder = self.root / "cells" / f"{label}-{model.replace('/', '_')}-{data}-{cell['cell_id'][:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        noise = int(cell["cell_id"][:6], 16)
        scopes = SCOPES.get(method, {}) if scopes is None else scopes
        parquet, metrics = _scored(records, tuple((chances or CHANCES[method]).items()), tuple(scopes.items()), noise)
        (folder / "records.parquet").write_bytes(parquet)
        shared = f"plugin-{data}-{template}-{seed}" if method == "onceedit" else cell["cell_id"]
        actions = [] if method == "none" else [shared]
        files = {
            "cell": cell,
            "metrics": json.loads(metrics),
            "cost": {
                "phases_s": {"setup": 1.0, "edit": EDIT_S[method], "attach": 0.1, "evaluate": 3.0},
                "attach_per_edit_run_s": 0.05,
                "edits": records,
                "edit_actions": list(actions if edit_actions is None else edit_actions),
                "device": "cpu",
                "device_class": "cpu: AMD EPYC × 1 threads",
                "threads": 1,
                "peak_memory_bytes": 2**30,
                "peak_memory_with_artifacts_bytes": 3 * 2**30,
                "citable": True,
                "flops": {"edit": 10**12},
                **(cost or {}),
            },
            "provenance": {
                "commit": "0123456789abcdef0123456789abcdef01234567",
                "dirty": False,
                "command": "python -m harness run suites/main_table.yaml --scale mini",
                "python": "3.11.9",
                "packages": {"torch": "2.13.0"},
                "host": "node",
                "started": "2026-01-02T03:04:05+00:00",
                "finished": "2026-01-02T03:04:15+00:00",
                "data_files": {"zsre.json": "ab" * 32},
                "artifacts": {},
            },
        }
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        (folder / "log.txt").write_text("done\n")
        (folder / "DONE").write_text("2026-01-02T03:04:15+00:00\n")
        if folder.name not in self.cells:
            self.cells.append(folder.name)
        return folder

    def write_failure(self, method: str, model: str, data: str, reason: str, **settings: Any) -> Path:
        """A cell that failed, with its identity and the reason; settings as for `write_cell`."""
        folder = self.write_cell(method, model, data, **settings)
        for file in folder.iterdir():
            if file.name != "cell.json":
                file.unlink()
        (folder / "FAILED").write_text(f"{reason}\ntraceback below\n")
        return folder

    def add_planned(self, method: str, model: str, data: str) -> None:
        """A cell that is in the manifest and was not run."""
        self.cells.append(f"{method}-{model.replace('/', '_')}-{data}-{'0' * 12}")


@cache
def _scored(
    records: int,
    chances: tuple[tuple[str, float], ...],
    scopes: tuple[tuple[str, tuple[float, float]], ...],
    noise: int,
) -> tuple[bytes, str]:
    """The Parquet file of a cell's rows and the JSON of its metrics; most tests write the same cells."""
    probes = fake_records(records, dict(chances), noise)
    probes["scope"] = fake_scopes(probes, dict(scopes), noise)
    file = io.BytesIO()
    probes.to_parquet(file)
    return file.getvalue(), json.dumps(metrics_of(probes))


def fake_records(records: int, chances: Mapping[str, float], noise: int) -> pd.DataFrame:
    """Two locality probes per record and one on every other axis; scores are token accuracies in steps of one half."""
    rng = np.random.default_rng(noise)
    rows = []
    for protocol in PROTOCOLS:
        for axis, chance in chances.items():
            for record in range(records):
                for probe in range(2 if axis == "locality" else 1):
                    score = float(rng.binomial(2, chance) / 2)
                    rows.append(
                        {
                            "record_id": f"u{record}" if axis == "locality_unrelated" else f"r{record}",
                            "protocol": protocol,
                            "axis": axis,
                            "probe": probe,
                            "prompt": "The capital of France is",
                            "target": "Rome",
                            "predicted": "Rome" if score == 1 else "Paris",
                            "n_tokens": 2,
                            "score": score,
                            "exact": float(score == 1),
                            "answer_score": score if axis.startswith("locality") else np.nan,
                        }
                    )
    return pd.DataFrame(rows)


def fake_scopes(probes: pd.DataFrame, scopes: Mapping[str, tuple[float, float]], noise: int) -> "pd.Series[float]":
    """One draw per question, the same under every protocol; NaN on an axis without a distribution."""
    rng = np.random.default_rng([noise, 1])
    questions = probes[["axis", "record_id", "probe"]].drop_duplicates()
    drawn = [rng.beta(*scopes[axis]) if axis in scopes else np.nan for axis in questions["axis"]]
    of_question = pd.Series(drawn, index=pd.MultiIndex.from_frame(questions))
    return pd.Series(of_question.loc[pd.MultiIndex.from_frame(probes[questions.columns])].to_numpy(), probes.index)


def metrics_of(probes: pd.DataFrame) -> dict[str, Any]:
    """The content of metrics.json: means over records of the means over their probes."""
    metrics: dict[str, Any] = {"diagnostics": {"alpha_edits_mean": 0.7}}
    by_record = probes.groupby(["protocol", "axis", "record_id"])[["score", "exact", "answer_score"]].mean()
    for (protocol, axis), scores in by_record.groupby(["protocol", "axis"]):
        entry = {"score": scores["score"].mean(), "exact": scores["exact"].mean(), "n": len(scores)}
        if axis.startswith("locality"):
            entry["answer_score"] = scores["answer_score"].mean()
        metrics.setdefault(protocol, {})[axis] = entry
    once = probes[(probes["protocol"] == PROTOCOLS[0]) & probes["scope"].notna()]
    if len(once):
        metrics["scope"] = summary({axis: same["scope"].tolist() for axis, same in once.groupby("axis")})
    return metrics
