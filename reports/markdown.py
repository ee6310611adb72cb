"""Tables as Markdown, escaped so that nothing is read as Markdown or HTML markup."""

import re
from collections.abc import Sequence

from reports.layout import Mark, Table, TableEntry

_MARKUP = re.compile(r"[\\`*_{}\[\]<>()#+.!|~$&@:^=\"'-]")


def render(tables: Sequence[Table]) -> str:
    """One heading per table and per section, a pipe table, and its remarks as a list."""
    return "\n".join(line for table in tables for line in _lines(table))


def escape(text: str) -> str:
    """Text in which no character is markup; a line break becomes a space."""
    return _MARKUP.sub(lambda match: "\\" + match[0], " ".join(text.split()))


def _lines(table: Table) -> list[str]:
    lines = [f"## {escape(table.title)}", "", escape(table.caption), ""]
    heads = [f"{escape(column.group)} {escape(column.title)}".strip() for column in table.columns]
    for section in table.sections:
        lines += [f"### {escape(section.title)}", "", f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for row in section.rows:
            title = f"*{escape(row.title)}*" if row.is_reference and row.title.strip() else escape(row.title)
            lines.append(f"| {title} | {' | '.join(map(_entry, row.entries))} |")
        lines.append("")
    remarks = (*table.notes, *(remark for section in table.sections for remark in section.remarks))
    lines += [f"* {escape(remark)}" for remark in remarks]
    return [*lines, ""]


def _entry(entry: TableEntry) -> str:
    text = escape(entry.text)
    if entry.mark is Mark.BEST:
        text = f"**{text}**"
    elif entry.mark is Mark.SECOND:
        text = f"<u>{text}</u>"
    return text + escape(entry.note) + (f" ±{escape(entry.half_width_text)}" if entry.half_width_text else "")
