"""What `benchmarks.ensemble` prints: its own JSON figures as tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.numbers import number, size

Figures = Mapping[str, Any]


def pair_line(pair: Figures) -> str:
    """Tables of a pair and what its relative states cost."""
    return (
        f"\n{name(pair)}: relative states of both models built in {pair['build_s']:.1f} s "
        f"(peak {size(pair['build_peak_bytes'])}); they take {size(pair['state_bytes'])}, "
        f"both R in fp32 would take {size(pair['matrix_bytes'])}"
    )


def fusion_table(pair: Figures, found: Sequence[Figures]) -> Table:
    """Part `fusion` at one shape, one record per batch."""
    table = _table(f"fusion and decoding, {name(pair)}", "batch", "decoder", *_TIMES, "memory", "speed-up", "by means")
    for record in found:
        for candidate, figures in record["candidates"].items():
            ups = [f"{number(figures[of])} ×" if of in figures else "–" for of in ("speed_up", "speed_up_mean")]
            table.add_row(str(record["batch"]), candidate, *_times(figures), size(figures["peak_bytes"]), *ups)
        table.add_section()
    return table


def fusion_line(record: Figures) -> str:
    """Levels and agreement at one batch."""
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


def step_table(title: str, found: Sequence[Figures]) -> Table:
    """Part `step`, one record per batch."""
    table = _table(title, "batch", "what", *_TIMES, "of both models")
    for record in found:
        for candidate, figures in record["candidates"].items():
            table.add_row(str(record["batch"]), candidate, *_times(figures), f"{figures['of_forwards']:.3f}")
        table.add_section()
    return table


def step_line(record: Figures) -> str:
    """The whole step as a multiple of both models' own, and the levels."""
    ratio, tally = record["ratio"], record["tally"]
    levels = ", ".join(f"L{level} {tally[f'certified_l{level}_share']:.0%}" for level in (0, 1, 2))
    return f"batch {record['batch']}: {ratio['median']:.3f} by medians, {ratio['mean']:.3f} by means; {levels}"


def name(pair: Figures) -> str:
    """Tables of a pair in short."""
    return f"V {pair['tokens_llm']}, A {pair['anchors']}, D {pair['width_llm']} / {pair['width_plugin']}"


_TIMES = ("ms", "10 to 90 %", "mean")


def _times(figures: Figures) -> tuple[str, ...]:
    median, low, high, mean = (number(1e3 * figures[of]) for of in ("median_s", "low_s", "high_s", "mean_s"))
    return median, f"{low} to {high}", mean


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for column in columns:
        table.add_column(column, justify="left" if column in ("decoder", "what") else "right", no_wrap=True)
    return table
