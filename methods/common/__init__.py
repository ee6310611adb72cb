"""What several methods share. This module: names of variants, and the demand for train records. No torch."""

from typing import Literal

from harness.errors import UserError
from harness.records import DataRef

Implementation = Literal["corrected", "faithful-easyedit"]
"""`corrected` is the method as its paper describes it; `faithful-easyedit` computes what EasyEdit's code does."""


def require_train(data: DataRef, what: str, train: int = 200, otherwise: str = "") -> None:
    """Check that a dataset keeps records for training.

    Args:
        data: the dataset.
        what: beginning of the sentence that ends with `unrelated records`.
        train: how many the fix asks for.
        otherwise: another fix.

    Raises:
        UserError: if it keeps none.
    """
    if not data.train:
        raise UserError(
            f"{what} unrelated records, and dataset '{data.name}' keeps none for training",
            fix=f"datasets: [{{name: {data.name}, train: {train}}}]{otherwise}",
        )
