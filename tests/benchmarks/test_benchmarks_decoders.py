"""The benchmark of decoders runs from end to end with all of them."""

import json

import pytest

from benchmarks import decoders


@pytest.mark.slow
def test_a_quick_run_times_every_decoder(tmp_path):
    decoders.main(["--quick", "--out", str(tmp_path / "results.json")])
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["seconds"]) == {"target alone", "two forwards", *decoders.DECODERS}
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert found["equal"]["column"] == 1.0
    assert all(0 <= share <= 1 for share in found["equal"].values())
