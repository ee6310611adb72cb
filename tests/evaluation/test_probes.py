import pytest

from harness.errors import UserError
from harness.evaluation.probes import ProbeQuery, check_lengths
from harness.tokens import Query


def test_a_question_beyond_the_models_positions_is_refused_with_its_record():
    asked = [ProbeQuery("12", "generality", 0, Query("", "", (1,) * 7, (2, 3)))]

    check_lengths(asked, 9)
    check_lengths(asked, None)
    with pytest.raises(UserError, match=r"record 12: a question of its generality has 9 tokens .* has 8 positions"):
        check_lengths(asked, 8)
