"""Whether a model combines edited facts: multi-hop questions, and the single facts that they combine."""

from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.registry import register_table
from reports.by_kind import Quantity, kinds_of, tabulate

if TYPE_CHECKING:
    import pandas as pd

    from reports.frame import SuiteFrame
    from reports.layout import Table

NOTES = (
    "Edit: the edits themselves, by record. All other columns are means over chains of facts.",
    "Single hops: the facts of a chain, asked one by one, edited or known before. Multi-hop: questions that combine them.",
    "All hops: chains all of whose facts are answered exactly (MQuAKE's instance-wise accuracy). Any: chains with an exact answer "
    "to at least one wording of the multi-hop question (MQuAKE's multi-hop accuracy). Given hops: Any, of the chains of All hops; "
    "not ranked, because these chains differ between methods.",
)


@register_table("multihop")
def multihop(frame: "SuiteFrame") -> tuple[list["Table"], "pd.DataFrame"]:
    """Multi-hop questions and their single hops, by chain of facts."""
    if not (frame.questions["chain"] != "").any():
        raise UserError(
            "table 'multihop' needs questions that combine several facts, and none of the datasets has any",
            fix="datasets: [mquake]",
        )
    return tabulate(frame, "multihop", "Multi-hop questions", [_edits, _by_chain], NOTES)


def _edits(records: "pd.DataFrame", questions: "pd.DataFrame") -> "pd.DataFrame":
    """Reliability of the edits of a cell that asks about chains."""
    asked = records[records["axis"] == "rel"] if (questions["chain"] != "").any() else records.iloc[:0]
    return asked.set_index("record_id")[["score", "cluster"]].rename(columns={"score": Quantity("", "Edit")})


def _by_chain(records: "pd.DataFrame", questions: "pd.DataFrame") -> "pd.DataFrame":
    """Scores of the chains of a cell."""
    import pandas as pd

    of_chains = questions[questions["chain"] != ""]
    single, combined = (of_chains[of_chains["axis"] == axis] for axis in ("hops", "port"))
    hops = kinds_of(single, "chain", "score", "Single hops")
    lengths = kinds_of(combined, "chain", "score", "Multi-hop")
    if len(lengths.columns) > 1:
        lengths[Quantity("Multi-hop", "All")] = combined.groupby("chain")["score"].mean()
    every = single.groupby("chain")["exact"].min()
    some = combined.groupby("chain")["exact"].max()
    exact = pd.DataFrame(
        {
            Quantity("Exact", "All hops"): every,
            Quantity("Exact", "Any"): some,
            Quantity("Exact", "Given hops", is_ranked=False): some.where(every.reindex(some.index) == 1),
        }
    )
    units = pd.concat([hops, lengths, exact], axis=1)
    units["cluster"] = of_chains.groupby("chain")["cluster"].first()
    return units
