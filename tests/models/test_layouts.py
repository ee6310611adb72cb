import re
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.models.layouts import LAYOUTS, layout_of

DOCS = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_documentation_lists_every_model_type_with_its_matrices():
    rows = re.findall(r"^\| `(\w+)` \| (`\w+`(?:, `\w+`)*) \| .* \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    listed = {model_type: tuple(re.findall(r"\w+", matrices)) for model_type, matrices in rows}
    assert listed == {model_type: layout.matrices for model_type, layout in LAYOUTS.items()}


def test_an_unknown_model_type_has_no_layout():
    assert layout_of({"model_type": "mamba"}) is None


def test_falcon_takes_masks_unless_it_has_alibi():
    assert layout_of({"model_type": "falcon"}).takes_masks
    assert not layout_of({"model_type": "falcon", "alibi": True}).takes_masks


@pytest.mark.parametrize("option", [{"do_layer_norm_before": False}, {"_remove_final_layer_norm": True}])
def test_an_opt_model_without_a_final_norm_is_refused_with_the_reason(option):
    with pytest.raises(UserError, match="normalises the residual stream after each feed-forward module"):
        layout_of({"model_type": "opt", "hidden_size": 1024, **option})


def test_an_opt_model_with_narrow_embeddings_projects_them_on_both_sides():
    layout = layout_of({"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 16})
    assert (layout.project_in, layout.project_out) == ("model.decoder.project_in", "model.decoder.project_out")
    assert layout_of({"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 32}).project_in is None
