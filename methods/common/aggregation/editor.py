"""Base classes of the methods: applying batches of edits round by round, with or without a trained hypernetwork."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import ArtifactSpec, Context, EditedModel, State
from harness.errors import UserError
from harness.memory import ANSWER_TOKENS, FP32, FP64, PROMPT_TOKENS, Memory
from harness.records import DataRef, EditRequest
from methods.common import Implementation, require_examples
from methods.common.aggregation.hparams import AggregationHparams, ShiftHparams
from methods.common.sequential import SequentialMethod

if TYPE_CHECKING:
    import torch

    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel
    from methods.common.aggregation.network import Changes
    from methods.common.aggregation.rounds import Rounds

TRAINING_VERSION = 2
"""Increment when training yields a different hypernetwork for the same inputs."""

ROLE = "hypernetwork"


class AggregationMethod(SequentialMethod):
    """Adds one least-squares shift per matrix, round and batch to the weights.

    The statistics that gradients are normalised by go on over all edits; they are the method's state.
    """

    hparams: Any
    """An `EditedHparams` with the number of edits per update, `batch`."""

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """The matrices; the streams, keys and gradients of a batch; the least-squares problem of one matrix in float64."""
        hparams, model = self.hparams, target.footprint
        edits, width = min(hparams.batch, data.edits), model.hidden + model.ffn
        rows, tokens = min(hparams.micro_batch, edits), edits * ANSWER_TOKENS
        above = model.n_layers - hparams.lowest_block(model.n_layers)
        return Memory(
            kept={"edited matrices": hparams.n_matrices * model.edited_matrix},
            edit={
                "streams": model.streams(edits * PROMPT_TOKENS),
                "keys and gradients": hparams.n_matrices * tokens * width * FP32,
                "least squares": (2 * tokens * width + min(tokens, model.ffn) ** 2) * FP64,
                "shifts": hparams.n_matrices * model.hidden * model.ffn * FP64,
                "activations": model.backward(rows * PROMPT_TOKENS, above),
                "logits": model.logits(rows * ANSWER_TOKENS, 4),
            },
        )

    @property
    def implementation(self) -> Implementation:
        """Whose rounds these are; a hyper-parameter of the methods that EasyEdit has too."""
        return "corrected"

    def rounds(self, model: "LoadedModel") -> "Rounds":
        """How a batch of edits becomes shifts of a model's matrices."""
        from methods.common.aggregation.as_easyedit import EasyEditRounds
        from methods.common.aggregation.rounds import Rounds

        kind = EasyEditRounds if self.implementation == "faithful-easyedit" else Rounds
        return kind(model, self.hparams)

    @property
    def remarks_in_sequence(self) -> Sequence[str]:
        """What readers must know about edits that are made on top of earlier ones."""
        return ()

    @abstractmethod
    def networks(
        self, rounds: "Rounds", artifacts: Mapping[str, Path], device: "torch.device"
    ) -> "tuple[list[Changes], Mapping[str, float]]":
        """A network for each round, or one for all, whose statistics may change; and diagnostics of their training."""

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Apply `batch` requests at a time, to matrices in float32; the diagnostics have the norm of this call's whole change.

        Raises:
            UserError: if a shift is not finite; the model is then unchanged.
        """
        from harness.models.edited import WeightEditedModel
        from harness.models.weights import widened
        from methods.common.paused import edit_queries
        from methods.common.prediction import edit_row

        rounds = self.rounds(model)
        networks, training = self.networks(rounds, artifacts, model.device)
        for number, network in enumerate(networks):
            network.follow(rounds.implementation)
            if state:
                kept = {name.partition("/")[2]: value for name, value in state.items() if name.startswith(f"{number}/")}
                network.set_statistics(kept)
        matrices = widened(model.model, [matrix.name.removesuffix(".weight") for matrix in rounds.matrices])
        with (
            matrices.restored_on_error(),
            context.progress(self.spec.title, len(requests)) as advance,
            context.clock.phase("edit"),
        ):
            rows = [edit_row(model, query, rounds.implementation) for query in edit_queries(model, requests)]
            for start in range(0, len(rows), self.hparams.batch):
                call = rows[start : start + self.hparams.batch]
                self._write(rounds, networks, call)
                advance(len(call))
        statistics = {
            f"{number}/{name}": value
            for number, network in enumerate(networks)
            for name, value in network.statistics().items()
        }
        diagnostics = {"change_norm": matrices.change_norm(), **training}
        return WeightEditedModel(
            model, matrices.restore, diagnostics, statistics, self.remarks_in_sequence if state else ()
        )

    def _write(self, rounds: "Rounds", networks: "Sequence[Changes]", rows: Sequence[Any]) -> None:
        """Write one batch."""
        from methods.common.aggregation.rounds import add

        batch = rounds.prepare(rows)
        for number in range(self.hparams.rounds):
            network = networks[min(number, len(networks) - 1)]
            shifts = rounds.shifts(rounds.gather(batch, network), network)
            if not all(bool(shift.isfinite().all()) for shift in shifts.values()):
                raise UserError(
                    f"{self.spec.name}: the shift of round {number + 1} is not a number", fix="a smaller `edit_lr`"
                )
            add(rounds.modules, shifts)


class LearnedAggregationMethod(AggregationMethod):
    """An `AggregationMethod` whose desired changes come from a hypernetwork, trained on the train records of the dataset."""

    hparams: AggregationHparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """The hypernetwork, trained for this model.

        Raises:
            UserError: if the dataset has no such train records, or the model no such matrices.
        """
        hparams = self.hparams
        hparams.require_known(target)
        number, size = hparams.batches(require_examples(data, self.spec.name))
        trained = hparams.model_dump(mode="json", include=set(ShiftHparams.model_fields))
        # forward and backward for the edit and for its rephrase; the same and a reference for locality
        passes = 6 + (4 if hparams.loc_weight else 0)
        return {
            ROLE: ArtifactSpec(
                name="shift-hypernetwork",
                kind="setup",
                identity={
                    "model": target.identity(),
                    "data": data.identity(),
                    "hparams": trained,
                    "seed": seed,
                    "version": TRAINING_VERSION,
                },
                builder="methods.common.aggregation.training:build",
                inputs={"model": target, "data": data, "method": self.spec.name},
                needs=target.artifacts(),
                passes=passes * hparams.steps * hparams.rounds * number * size,
                memory=self._training_memory(target, data),
            )
        }

    @property
    def remarks_in_sequence(self) -> Sequence[str]:
        """Whether its training knew only single batches."""
        one = "its hypernetwork was trained to edit the unedited model, not a sequence of edits (mode: batch)"
        return (one,) if self.hparams.mode == "batch" else ()

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """With the hypernetworks."""
        need = super().memory(target, data, eval_batch)
        return Memory({**need.kept, "hypernetworks": self._network_bytes(target)}, need.edit)

    def _training_memory(self, target: "ModelRef", data: DataRef) -> dict[str, float]:
        """The networks with gradient and Adam's state; streams, keys and gradients of a batch; shifts and their gradients."""
        hparams, model = self.hparams, target.footprint
        number, edits = hparams.batches(require_examples(data, self.spec.name))
        tokens, rows = edits * ANSWER_TOKENS, min(hparams.micro_batch, edits)
        width = model.hidden + model.ffn
        return {
            "hypernetworks with gradient and Adam": 4 * self._network_bytes(target),
            "streams": model.streams(3 * edits * number * PROMPT_TOKENS),
            "keys and gradients": hparams.rounds * hparams.n_matrices * tokens * width * FP32,
            "least squares": (4 * tokens * width + min(tokens, model.ffn) ** 2) * FP64,
            "shifts and gradients": hparams.n_matrices * model.hidden * model.ffn * (FP64 + 3 * FP32),
            "activations": model.backward(rows * PROMPT_TOKENS, model.n_layers - hparams.lowest_block(model.n_layers)),
            "logits": model.logits(rows * ANSWER_TOKENS, 4),
        }

    def _network_bytes(self, target: "ModelRef") -> float:
        """Two matrices of size × rank for each residual layer and direction of the edited matrices."""
        hparams, model, known = self.hparams, target.footprint, target.spec.layout.matrices
        directions = {name == known[-1] for name in (*hparams.matrices, *hparams.further)}
        size = (model.hidden + model.ffn) * FP32
        return len(directions) * hparams.blocks_of_network * 2.0 * size * sum(hparams.ranks)

    def networks(
        self, rounds: "Rounds", artifacts: Mapping[str, Path], device: "torch.device"
    ) -> "tuple[list[Changes], Mapping[str, float]]":
        """The trained networks, with the number of optimiser steps, the last loss and the smallest learned rate.

        Raises:
            ValueError: if they were trained for other matrices.
        """
        from methods.common.aggregation.network import load

        networks, report = load(artifacts[ROLE], self.hparams.blocks_of_network, device)
        if any(network.matrices != rounds.matrices for network in networks):
            raise ValueError("the hypernetwork was trained for other matrices")
        least = min(rate for rates in report["edit_lr"] for rate in rates)
        steps, losses = len(report["losses"]), report["losses"]
        return list(networks), {"trained_steps": float(steps), "trained_loss": losses[-1], "least_edit_rate": least}
