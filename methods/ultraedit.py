"""UltraEdit: normalised gradients, aggregated by least squares, without any training (Gu et al. 2025, arXiv 2505.14679)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from harness.api import ArtifactSpec
from harness.records import DataRef
from harness.registry import register
from methods.common import Implementation
from methods.common.aggregation.editor import AggregationMethod
from methods.common.aggregation.hparams import EditedHparams

if TYPE_CHECKING:
    import torch

    from harness.models.catalogue import ModelRef
    from methods.common.aggregation.network import Changes
    from methods.common.aggregation.rounds import Rounds


class UltraEditHparams(EditedHparams):
    """Hyper-parameters of UltraEdit, in addition to the edited matrices and the number of rounds.

    Attributes:
        batch: edits per update ("turn"); successive updates accumulate in the same weights.
        edit_lr: η, the size of the desired changes.
        ridge: λ of the least-squares problem.
        implementation: `faithful-easyedit` reads all tokens of an edit and averages over all labels of a micro-batch, so that
            `micro_batch` affects results.
    """

    batch: int = Field(ge=1)
    edit_lr: float = Field(gt=0)
    ridge: float = Field(gt=0)
    implementation: Implementation = "corrected"


@register("ultraedit", title="UltraEdit", family="weights", version=1)
class UltraEdit(AggregationMethod):
    """Desired change -η ‖k̂‖² û at each target token, with key and gradient normalised by the statistics of all edits so far.

    No training, no stored edits: the statistics of each round and shape of matrices are all that it keeps.
    """

    Hparams = UltraEditHparams
    hparams: UltraEditHparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """None.

        Raises:
            UserError: if the model has no such matrices.
        """
        self.hparams.require_known(target)
        return {}

    def identity_on(self, target: "ModelRef") -> Mapping[str, str]:
        """Whose statistics several rounds use, because cells in which they shared them have the same version."""
        return {"statistics": "of each round"} if self.hparams.rounds > 1 else {}

    @property
    def implementation(self) -> Implementation:
        """As the hyper-parameter says."""
        return self.hparams.implementation

    def networks(
        self, rounds: "Rounds", artifacts: Mapping[str, Path], device: "torch.device"
    ) -> "tuple[list[Changes], Mapping[str, float]]":
        """One without parameters for each round: a later round has smaller gradients, and statistics of its own."""
        from methods.common.aggregation.network import Normalised

        hparams = self.hparams
        return [
            Normalised(rounds.matrices, hparams.edit_lr, hparams.ridge).to(device) for _ in range(hparams.rounds)
        ], {}
