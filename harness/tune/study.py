"""Trials of hyper-parameters: Optuna proposes values, cells on dev records measure them.

A trial is one or two ordinary cells. Once four trials have made all their edits, a trial whose score after a third of the edits is
below their median at that point is stopped. The cells stay in the store, so trials share artifacts and a repeated one is free.
"""

import io
import itertools
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from harness import registry
from harness.api import Launcher
from harness.commands import harness_command
from harness.data.load import load
from harness.errors import UserError
from harness.evaluation.probes import Axis, questions_of
from harness.files import write_bytes
from harness.identity import digest
from harness.plan.cell import Cell
from harness.plan.plan import Plan, PlannedCell, roots
from harness.run.progress import Display
from harness.run.start import refuse
from harness.store.store import Store
from harness.suite import Suite, load_suite
from harness.suite.hparams import ResolvedHparams, resolve, search_file
from harness.tune.space import Space, read_space
from harness.yaml_source import generated

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

AXES: tuple[Axis, ...] = ("reliability", "generality", "locality")
PROTOCOL = "generation"
REASON = "reason"
"""Attribute of a trial that failed. A trial left by a killed process has none, and is run again."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is tuned, and how a trial is measured.

    Attributes:
        method, dataset: names, as in a suite.
        model: name or source, as in a suite, or `NAME=SOURCE`.
        edits: records of the dev split that a whole trial edits.
        scale, data: as for a suite.
        backend: whose implementation of the method.
        space: file with the ranges; None for the method's own.
        seed: of the search; cells have seed 0.
    """

    method: str
    model: str
    dataset: str
    edits: int = 30
    scale: str | None = None
    data: str | None = None
    backend: str = registry.NATIVE
    space: Path | None = None
    seed: int = 0

    def command(self, trials: int) -> str:
        """The command line for it, without the store."""
        return harness_command(
            *("tune", self.method),
            model=self.model,
            dataset=self.dataset,
            trials=trials,
            edits=self.edits,
            scale=self.scale,
            data=self.data,
            backend=None if self.backend == registry.NATIVE else self.backend,
            space=self.space,
            seed=self.seed or None,
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """Mean scores of a trial by generation, between 0 and 1, and the number of edits that they are over."""

    edits: int
    reliability: float
    generality: float
    locality: float

    @property
    def score(self) -> float:
        """Mean of the three, which is what the search maximises."""
        return (self.reliability + self.generality + self.locality) / len(AXES)

    def __str__(self) -> str:
        return (
            f"Score {self.score:.3f} (Rel {self.reliability:.2f}, Gen {self.generality:.2f}, Loc {self.locality:.2f})"
        )


@dataclass(frozen=True, slots=True)
class Result:
    """The best trial of a study next to the values that were in use before it.

    Attributes:
        model: the model, after the scale was applied.
        architecture: its `model_type`.
        values: the hyper-parameters that were searched, with their best values.
        best, before: scores; `before` is None if the values in use are outside the ranges or could not be measured.
        trials: number of trials in the study.
    """

    model: str
    architecture: str
    values: Mapping[str, Any]
    best: Measured
    before: Measured | None
    trials: int


class Tuning:
    """A search that can be interrupted and continued: all trials are in an SQLite file of the store.

    Args:
        question: what to tune.
        store: gets the cells of the trials.
        launch: makes the launcher of a suite.
        console: gets one line per trial.
    """

    def __init__(self, question: Question, store: Store, launch: Callable[[Suite], Launcher], console: Console) -> None:
        self.question = question
        self.store = store
        self.console = console
        self._launch = launch
        suite = self._suite({}, question.edits)
        self.model, self._spec = suite.models[0].name, suite.models[0].spec
        if problem := suite.models[0].problem or suite.methods[0].problems.get(suite.models[0]):
            raise UserError(problem)
        self.current: ResolvedHparams = suite.methods[0].hparams[suite.models[0]]
        own = registry.find_method(question.method, question.backend)
        file = question.space or search_file(own)
        if file is None:
            raise UserError(
                f"method '{question.method}' has no search.yaml with the ranges to search",
                fix="pass a file with --space",
            )
        self.space: Space = read_space(file, self.current.values, self._spec.n_layers)

    @property
    def name(self) -> str:
        """Name of the study and of its database."""
        asked = self.question
        backend = [] if asked.backend == registry.NATIVE else [asked.backend]
        return "-".join(("tune", asked.method, self.model.replace("/", "_"), asked.dataset, *backend))

    @property
    def database(self) -> Path:
        """Optuna's file; `optuna-dashboard sqlite:///FILE` shows it."""
        return self.store.root / "tuning" / f"{self.name}.db"

    def run(self, trials: int, parallel: int = 1) -> Result:
        """Run trials until the study has that many, including those of earlier runs.

        Args:
            trials: number of trials.
            parallel: trials that are proposed and launched together; more than one helps on a cluster only.

        Raises:
            UserError: if the values in use cannot run, if the records have no questions for one of the scores, if no trial has
                a result, or if the study was begun with other ranges, records, weights or code.
        """
        from optuna.samplers import TPESampler

        self._check_records()
        study = self.study
        while (left := trials - len(self._ended())) > 0:
            study.sampler = TPESampler(seed=self.question.seed + len(study.trials), constant_liar=parallel > 1)
            self._round([study.ask() for _ in range(min(parallel, left))], trials)
        ended = self._ended()
        measured = [trial for trial in ended if trial.value is not None and _is_complete(trial)]
        if not measured:
            reasons = dict.fromkeys(str(trial.user_attrs.get(REASON, "")) for trial in ended)
            raise UserError(f"none of {len(ended)} trials has a result: {next(iter(reasons))}")
        best = max(measured, key=lambda trial: (trial.value, -trial.number))
        before = next((trial for trial in measured if trial.user_attrs.get("values") == self._searched), None)
        return Result(
            self.model,
            self._spec.architecture,
            best.user_attrs["values"],
            _measured(best),
            _measured(before) if before else None,
            len(ended),
        )

    @cached_property
    def study(self) -> "Study":
        """The study, loaded or created: its first trial has the values in use, and interrupted trials come next."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.database.parent.mkdir(parents=True, exist_ok=True)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
        study = optuna.create_study(
            storage=f"sqlite:///{self.database}",
            study_name=self.name,
            direction="maximize",
            pruner=pruner,
            load_if_exists=True,
        )
        identity = digest(self._identity())
        if study.user_attrs.get("identity", identity) != identity:
            raise UserError(
                f"{self.database}: this study was made with different ranges, records, weights, versions or code",
                fix=f"rm {shlex.quote(str(self.database))}",
            )
        if "identity" not in study.user_attrs:
            study.set_user_attr("identity", identity)
            if (first := self.space.parameters(self.current.values)) is not None:
                study.enqueue_trial(first)
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial({**trial.system_attrs.get("fixed_params", {}), **trial.params})
        return study

    @property
    def _searched(self) -> dict[str, Any]:
        """The values in use, of what is searched."""
        return {key: self.current.values[key] for key in self.space.ranges}

    @cached_property
    def _cell(self) -> Cell:
        """A whole trial of the values in use."""
        plan = self._plan({"current": {}}, self.question.edits)
        refuse(plan, self._launch(plan.suite))
        return plan.runnable[0]

    def _check_records(self) -> None:
        """Refuse records that cannot be scored, before anything runs."""
        data = load(self._cell.data)
        for edits, axis in itertools.product(self._budgets(), AXES):
            if not any(questions_of(replace(data, edits=data.edits[:edits]), axis)):
                raise UserError(
                    f"the first {edits} dev records of {self.question.dataset} have no questions about {axis}, which is part of "
                    "the score of a trial",
                    fix="name another --dataset, or more --edits",
                )

    def _identity(self) -> dict[str, Any]:
        """What must stay the same for trials to be comparable.

        Of artifacts, only builders from outside this project: keys of artifacts may depend on the values that are searched.
        """
        cell = self._cell
        identity, specs = cell.identity(), [spec for root in roots(cell) for spec in root.closure()]
        fixed = {key: value for key, value in identity["method"]["hparams"].items() if key not in self.space.ranges}
        return {
            **identity,
            "method": {**identity["method"], "hparams": fixed},
            "artifacts": {spec.builder: spec.content["code"] for spec in specs if "code" in spec.content},
            "space": self.space.identity(),
        }

    def _ended(self) -> "list[FrozenTrial]":
        return [trial for trial in self.study.get_trials() if trial.state.is_finished() and _counts(trial)]

    def _round(self, asked: "Sequence[Trial]", trials: int) -> None:
        """Measure trials side by side: first on a third of the edits, then those that are not pruned on all."""
        from optuna.trial import TrialState

        values = {trial.number: self.space.suggest(trial) for trial in asked}
        for trial in asked:
            trial.set_user_attr("values", values[trial.number])
        going = {}
        for trial in asked:
            try:
                self._check(values[trial.number])
                going[trial.number] = trial
            except UserError as error:
                self._end(trial, TrialState.FAIL, str(error), trials)
        for edits in self._budgets():
            outcomes = self._measure({number: values[number] for number in going}, edits)
            for number, outcome in outcomes.items():
                trial = going[number]
                if isinstance(outcome, str):
                    self._end(going.pop(number), TrialState.FAIL, outcome, trials)
                elif edits < self.question.edits:
                    trial.report(outcome.score, step=edits)
                    if trial.should_prune():
                        self._end(going.pop(number), TrialState.PRUNED, f"{outcome} after {edits} edits", trials)
                else:
                    trial.set_user_attr("measured", astuple(outcome))
                    self._end(going.pop(number), TrialState.COMPLETE, str(outcome), trials, outcome.score)

    def _budgets(self) -> list[int]:
        """Numbers of edits at which a trial is measured; small studies have one."""
        first = self.question.edits // 3
        return [*([first] if first >= 3 else []), self.question.edits]

    def _end(self, trial: "Trial", state: Any, what: str, trials: int, score: float | None = None) -> None:
        """Tell the study about a trial, and the user in one line."""
        from optuna.trial import TrialState

        if score is None:
            trial.set_user_attr(REASON, what)
        self.study.tell(trial.number, score, state=state)
        ended = self._ended()
        mark = {TrialState.COMPLETE: "", TrialState.PRUNED: "stopped early: "}.get(state, "failed: ")
        values = ", ".join(f"{key} {value}" for key, value in trial.user_attrs["values"].items())
        best = max((each.value for each in ended if _is_complete(each) and each.value is not None), default=None)
        self.console.print(
            f"{len(ended)}/{trials}  {mark}{what}  {values}" + ("" if best is None else f"  [best {best:.3f}]"),
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip

    def _check(self, values: Mapping[str, Any]) -> None:
        """Raise the method's own refusal of a combination of values."""
        resolve(self.question.method, self.model, dict(values), backend=self.question.backend, spec=self._spec)

    def _measure(self, trials: Mapping[int, Mapping[str, Any]], edits: int) -> dict[int, "Measured | str"]:
        """Run one cell per trial, or find it in the store.

        Returns:
            By trial: its scores, or why it has none.
        """
        if not trials:
            return {}
        labels = {number: f"{self.question.method}-{digest(values, 8)}" for number, values in trials.items()}
        plan = self._plan({labels[number]: values for number, values in trials.items()}, edits)
        launcher = self._launch(plan.suite)
        shown = f"{', '.join(f'trial {number}' for number in trials)}: {edits} edits"
        with self.store.locked(), self.console.status(shown):
            launcher.run(plan, Display(Console(file=io.StringIO())))
        cells = {planned.title[0]: planned for planned in plan.cells}
        return {number: self._outcome(cells[label], edits) for number, label in labels.items()}

    def _outcome(self, planned: PlannedCell, edits: int) -> "Measured | str":
        if planned.cell is None:
            return planned.missing[0]
        folder = self.store.cell(planned.cell.folder)
        if not folder.is_done:
            return folder.failure or "no result"
        scores = folder.read("metrics.json")[PROTOCOL]
        return Measured(edits, *(scores[axis]["score"] for axis in AXES))

    def _plan(self, methods: Mapping[str, Mapping[str, Any]], edits: int) -> Plan:
        suite = self._suite(methods, edits)
        return Plan.on(self._launch(suite), suite, self.store).with_models_here()

    def _suite(self, methods: Mapping[str, Mapping[str, Any]], edits: int) -> Suite:
        """Values by label as a suite file, so that trials are launched, logged and resumed like any other cells."""
        asked = self.question
        entries = [{"name": asked.method, "label": label, "hparams": dict(values)} for label, values in methods.items()]
        content = {
            "name": f"tune-{asked.method}-{asked.dataset}",
            "models": [_entry(asked.model)],
            "methods": entries or [{"name": asked.method}],
            "datasets": [{"name": asked.dataset, "edits": edits, "split": "dev"}],
            "protocols": [PROTOCOL],
        }
        file = self.store.root / "tuning" / f"{content['name']}.yaml"
        write_bytes(file, yaml.safe_dump(content, sort_keys=False).encode())
        with generated(file):
            return load_suite(file, scale=asked.scale, data=asked.data, edits=edits, backend=asked.backend)


def _entry(model: str) -> dict[str, str] | str:
    """An entry of a suite's models: a name or a source, or `NAME=SOURCE` for a name of your own."""
    name, equals, source = model.partition("=")
    return {"name": name, "source": source} if equals else model


def _counts(trial: "FrozenTrial") -> bool:
    return _is_complete(trial) or REASON in trial.user_attrs


def _is_complete(trial: "FrozenTrial") -> bool:
    return trial.state.name == "COMPLETE"


def _measured(trial: "FrozenTrial") -> Measured:
    return Measured(*trial.user_attrs["measured"])
