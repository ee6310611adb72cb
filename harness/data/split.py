"""Which records settings are tuned on and which are scored: decided by a record's id alone, for ever."""

import hashlib
from typing import Literal, get_args

from harness.errors import UserError, did_you_mean

Split = Literal["test", "dev", "all"]
SPLITS: tuple[str, ...] = get_args(Split)


def is_dev(dataset: str, record_id: str) -> bool:
    """True for one record in four. Hyper-parameters are tuned on these and on no other record."""
    return hashlib.sha256(f"{dataset}:{record_id}".encode()).digest()[0] % 4 == 0


def belongs(dataset: str, record_id: str, split: str) -> bool:
    """Whether a record is in the split; `all` ignores the division.

    Raises:
        UserError: for a split that does not exist.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}'{did_you_mean(split, SPLITS)}", fix="split: test")
    return split == "all" or is_dev(dataset, record_id) == (split == "dev")
