"""Terminal tables of the results of `benchmarks.ensemble`, from the contents of its JSON file."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from benchmarks.command import new_table, number, size

Results = Mapping[str, Any]


def pair_line(pair: Results) -> str:
    """The shape of a pair and the cost of its relative states."""
    return (
        f"\n{name(pair)}: relative states of both models built in {pair['build_s']:.1f} s "
        f"(peak {size(pair['build_peak_bytes'])}); they take {size(pair['state_bytes'])}, "
        f"both R in fp32 would take {size(pair['matrix_bytes'])}"
    )


def fusion_table(pair: Results, found: Sequence[Results]) -> Table:
    """Table of part `fusion` for one shape, one record per batch size."""
    table = new_table(
        f"fusion and decoding, {name(pair)}", ["batch", "decoder"], [*_TIMES, "memory", "speed-up", "by means"]
    )
    for record in found:
        for candidate, times in record["candidates"].items():
            ups = [f"{number(times[of])} ×" if of in times else "–" for of in ("speed_up", "speed_up_mean")]
            table.add_row(str(record["batch"]), candidate, *_times(times), size(times["peak_bytes"]), *ups)
        table.add_section()
    return table


def fusion_line(record: Results) -> str:
    """Levels and agreement for one batch size."""
    levels = ", ".join(f"{level.upper()} {share:.0%}" for level, share in record["levels"].items())
    counts = record["agreement"]
    text = f"batch {record['batch']}: {levels}; owner = column {counts['owner_is_column']} / {counts['rows']}"
    if "checked_rows" in counts:
        checked = counts["checked_rows"]
        text += (
            f"; anchor = arg-max of R {counts['anchors_equal']} / {checked} ({counts['wrong']} wrong)"
            f"; column = search {counts['column_is_search']} / {checked}"
        )
    return text


def step_table(title: str, found: Sequence[Results]) -> Table:
    """Table of part `step`, one record per batch size."""
    table = new_table(title, ["batch", "what"], [*_TIMES, "of both models"])
    for record in found:
        for candidate, times in record["candidates"].items():
            table.add_row(str(record["batch"]), candidate, *_times(times), f"{times['of_forwards']:.3f}")
        table.add_section()
    return table


def step_line(record: Results) -> str:
    """Cost of the whole step relative to both forward passes, and the levels."""
    ratio, tally = record["ratio"], record["tally"]
    levels = ", ".join(f"L{level} {tally[f'certified_l{level}_share']:.0%}" for level in (0, 1, 2))
    return f"batch {record['batch']}: {ratio['median']:.3f} by medians, {ratio['mean']:.3f} by means; {levels}"


def name(pair: Results) -> str:
    """Short description of a pair's shape."""
    return f"V {pair['tokens_llm']}, A {pair['anchors']}, D {pair['width_llm']} / {pair['width_plugin']}"


_TIMES = ("ms", "10 to 90 %", "mean")


def _times(times: Results) -> tuple[str, ...]:
    median, low, high, mean = (number(1e3 * times[of]) for of in ("median_s", "low_s", "high_s", "mean_s"))
    return median, f"{low} to {high}", mean
