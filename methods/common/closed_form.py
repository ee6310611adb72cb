"""What ROME, MEMIT and their kin have in common as the harness sees them: hyper-parameters, and what these need. No torch."""

from harness.api import ArtifactSpec
from harness.models.catalogue import ModelRef
from harness.records import DataRef
from methods.common import moments, prefixes
from methods.common.moments import MomentHparams
from methods.common.value_hparams import ValueHparams


class ClosedFormHparams(ValueHparams, MomentHparams):
    """Hyper-parameters of a value, and of the second moments of keys under which a matrix is changed to give it."""

    def artifacts(self, target: ModelRef, data: DataRef, seed: int) -> dict[str, ArtifactSpec]:
        """Context prefixes and, unless C is the identity, second moments of keys.

        Raises:
            UserError: where there is nothing to compute second moments from, or a layer that the model does not have.
        """
        self.require_layers(target)
        needed = {"prefixes": prefixes.artifact(target, self.prefixes, seed)}
        if self.moments != "identity":
            needed["moments"] = moments.artifact(target, data, self.layers, self, seed)
        return needed
