"""The round trip of a model's own tokens through anchor space, on fixed prompts.

With α = 0 the ensemble should be the target model. It is not wherever the most probable anchor of the model's own
distribution belongs to another token; that share of its tokens is lost whatever the plug-in says.
"""

from typing import TYPE_CHECKING

import torch

from methods.onceedit.certify import certified_argmax
from methods.onceedit.forward import logits_at
from methods.onceedit.fusion import Projection, rows_together
from methods.onceedit.relative import RelativeState

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ENOUGH = 0.98
"""Below this share of surviving tokens, scores say more about the round trip than about the edits."""

TEXTS = (
    "The mother tongue of the French actress who starred in the film is",
    "Which river flows through the city where the composer was born?",
    "He was appointed professor of physics at the university in 1921, and two years later",
    "The novel, first published in London, was written by",
    "To install the package, open a terminal and type the following command:",
    "Water boils at a lower temperature on high mountains because the pressure of the air",
    "She plays as a goalkeeper for the national football team of",
    "The capital of the province lies on the northern shore of the lake, close to the border with",
)
"""Each prefix of a text from its fourth token on is one prompt."""

QUESTIONS = (
    "Who wrote the novel?",
    "What is the capital of the province?",
    "In which year was the bridge opened?",
    "What sport does she play?",
    "Which language is spoken on the island?",
    "Where did the composer die?",
    "Who was the father of the king?",
    "What is the name of the band's first album?",
    "Which company built the engine?",
    "What position does the player have?",
    "When did the war end?",
    "On which network was the series shown?",
    "What caused the fire?",
    "Which city hosted the games?",
    "Who directed the film?",
    "What kind of instrument does he play?",
    "How many people live in the town?",
    "What is the boiling point of water?",
    "Which award did the actress receive?",
    "Where is the headquarters of the bank?",
    "To which family does the plant belong?",
    "Who is the owner of the newspaper?",
    "What is two plus three?",
    "Which river flows into the lake?",
)
"""Each is one prompt: many models begin an answer with a line break, a token that tokenizers spell in different ways."""

_FIRST = 3


@torch.no_grad()
def round_trip(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", state: RelativeState) -> float:
    """Share of prompts whose most probable token survives anchor space at α = 0.

    Args:
        model: the model of `state`.
        tokenizer: its tokenizer.
        state: the model's relative state.
    """
    rows: list[list[int]] = tokenizer([*TEXTS, *QUESTIONS])["input_ids"]
    places = [
        (row, at)
        for row, ids in enumerate(rows)
        for at in range(_FIRST if row < len(TEXTS) else len(ids) - 1, len(ids))
    ]
    probs_NV = logits_at(model, rows, places).softmax(dim=-1)
    projection, ones_N = Projection(state), torch.ones(len(places))
    together = rows_together(probs_NV.shape[1], state.embeddings_VD.device)
    found = certified_argmax(lambda part: [projection.side(probs_NV[part], ones_N[part])], len(places), together)
    given_back_N = state.owners(found.anchors_B) == probs_NV.argmax(dim=-1).to(found.anchors_B.device)
    return float(given_back_N.double().mean())
