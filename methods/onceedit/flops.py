"""Matrix FLOPs of OnceEdit as exact integers (eq. 20-26, Table 5).

V is a vocabulary's size, A the number of anchors, d the width of the embeddings.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TERA = 10**12


@dataclass(frozen=True, slots=True)
class EmbeddingTable:
    """One model of a pair: rows and width of its embedding table."""

    vocabulary: int
    width: int

    @classmethod
    def of(cls, model: "PreTrainedModel") -> Self:
        """The input embeddings of a model; also works on the `meta` device."""
        vocabulary, width = model.get_input_embeddings().weight.shape
        return cls(vocabulary, width)


def relative_matrix_flops(side: EmbeddingTable, anchors: int) -> int:
    """FLOPs of one relative transfer matrix: cosines of all tokens with all anchors, and their softmax (eq. 20-26)."""
    v, d, a = side.vocabulary, side.width, anchors
    return (2 * d + 27) * v * a + 1 + 2 * d * v + (2 * d + 1) * a


def attach_flops(llm: EmbeddingTable, plugin: EmbeddingTable, anchors: int) -> int:
    """FLOPs of both matrices of a pair: the one-time cost of attaching a target model (Table 5, "all")."""
    return relative_matrix_flops(llm, anchors) + relative_matrix_flops(plugin, anchors)


def forward_flops(non_embedding_parameters: int) -> int:
    """FLOPs of a forward pass per token: one multiplication and one addition per non-embedding weight."""
    return 2 * non_embedding_parameters


def equivalent_tokens(llm: EmbeddingTable, plugin: EmbeddingTable, anchors: int, non_embedding_parameters: int) -> int:
    """Number of tokens that the target model could decode for the cost of attaching (Table 5, "Num").

    As in the paper, the cost per token is first rounded to 0.001 TFLOPs (unless nothing would be left of it), and the ratio
    is rounded up.
    """
    exact = forward_flops(non_embedding_parameters)
    per_token = round(exact / 10**9) * 10**9 or exact
    return -(-attach_flops(llm, plugin, anchors) // per_token)


def paper_flops(llm: "PreTrainedModel", plugin: "PreTrainedModel", anchors: int) -> dict[str, int]:
    """The row of Table 5 for a pair: attaching, one token of the target model, and attaching in tokens.

    Args:
        llm: the target model.
        plugin: the plug-in, with its `[WEIGHT]`.
        anchors: number of anchors of the pair.
    """
    left, right, parameters = EmbeddingTable.of(llm), EmbeddingTable.of(plugin), non_embedding_parameters(llm)
    return {
        "attach": attach_flops(left, right, anchors),
        "per_token": forward_flops(parameters),
        "attach_in_tokens": equivalent_tokens(left, right, anchors, parameters),
    }


def non_embedding_parameters(model: "PreTrainedModel") -> int:
    """Number of weights outside the input embeddings and the output head; also works on the `meta` device."""
    outside = [model.get_input_embeddings(), model.get_output_embeddings()]
    embedded = {id(parameter) for module in outside for parameter in module.parameters()}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in embedded)
