"""Tables as LaTeX (booktabs), compiled to PDF where pdflatex is installed."""

import itertools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jinja2

from harness.errors import UserError
from harness.files import write_bytes
from reports.layout import Column, Mark, Table, TableEntry

TIMEOUT_S = 60
PACKAGES = "booktabs, graphicx"
INSTALL_HINT = "apt-get install texlive-latex-base texlive-latex-recommended"

_SPECIAL = {
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
    "→": r"$\rightarrow$",
    "…": r"\dots{}",
    "Δ": r"$\Delta$",
    "λ": r"$\lambda$",
    "’": "'",
}

_JOINED = frozenset("-–")
"""Signs that are joined to their neighbours."""

_TABLE = r"""
\begin{table*}[t]
\centering
\caption{\textbf{<< title >>.} << caption >>}
\label{tab:<< name >>}
\vspace{4pt}
\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%
\begin{tabular}{<< alignment >>}
\toprule
<% if has_groups -%>
<< groups >> \\
<< rules >>
<% endif -%>
<< titles >> \\
<% for section in sections -%>
\midrule
\multicolumn{<< width >>}{c}{\textbf{<< section.title >>}} \\
\midrule
<% for row in section.rows -%>
<< row >> \\
<% endfor -%>
<% endfor -%>
\bottomrule
\end{tabular}}
<% for remark in remarks -%>
\\[<< "4pt" if loop.first else "0pt" >>] {\footnotesize << remark >>}
<% endfor -%>
\end{table*}
"""

_DOCUMENT = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage[a4paper,landscape,margin=15mm]{geometry}
\usepackage{booktabs,graphicx}
\pagestyle{empty}
\begin{document}
\input{table}
\end{document}
"""

_environment = jinja2.Environment(
    block_start_string="<%",
    block_end_string="%>",
    variable_start_string="<<",
    variable_end_string=">>",
    comment_start_string="<#",
    comment_end_string="#>",
    keep_trailing_newline=True,
    autoescape=False,
    undefined=jinja2.StrictUndefined,
)


def render(tables: Sequence[Table], source: str) -> str:
    r"""LaTeX source to `\input`: one float per table, below a comment that says where the tables come from."""
    head = f"% {source}\n% Needs the packages {PACKAGES}.\n"
    return head + "".join(_render_one(table) for table in tables)


def compile_all(sources: Sequence[Path]) -> tuple[list[Path], str]:
    """Compile files written by `render`, until one takes too long.

    Returns:
        The PDFs, and one line about those that are missing: how many, why the first is, and what helps; empty if none is.
    """
    for tex in sources:  # no PDF of earlier numbers next to these
        tex.with_suffix(".pdf").unlink(missing_ok=True)
    program = shutil.which("pdflatex")
    if program is None:
        return [], f"pdflatex is not installed, so no PDF was made of the tables ({INSTALL_HINT})"
    made, failures = [], []
    for tex in sources:
        try:
            made.append(compile_pdf(tex, program))
        except UserError as error:
            failures.append(str(error))
        except TimeoutError as error:  # the next would hang as well
            failures += [str(error)] * (len(sources) - len(made) - len(failures))
            break
    return made, f"no PDF of {len(failures)} tables: {failures[0]}" if failures else ""


def compile_pdf(tex: Path, program: str = "pdflatex") -> Path:
    """Compile a file written by `render` as a document of its own, or a whole document where it is; keep the log next to it.

    Returns:
        The PDF, with the same name.

    Raises:
        UserError: if pdflatex cannot be started or fails; says why.
        TimeoutError: if it takes longer than a minute.
    """
    pdf, log = tex.with_suffix(".pdf"), tex.with_suffix(".log")
    with tempfile.TemporaryDirectory(prefix="table-") as scratch:
        build = Path(scratch)
        is_whole = tex.read_text(encoding="utf-8").startswith(r"\documentclass")
        if not is_whole:
            shutil.copy(tex, build / "table.tex")
            (build / "document.tex").write_text(_DOCUMENT, encoding="utf-8")
        command = [program, "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error"]
        command += [f"-output-directory={build}", "-jobname=document", tex.name] if is_whole else ["document.tex"]
        try:
            done = subprocess.run(
                command,
                cwd=tex.parent if is_whole else build,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_S,
                check=False,
                encoding="utf-8",
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"pdflatex did not finish {tex} within {TIMEOUT_S} s") from None
        except OSError as error:
            raise UserError(f"{program} cannot be started: {error.strerror}", fix=INSTALL_HINT) from None
        write_bytes(log, done.stdout.encode())
        result = build / "document.pdf"
        if done.returncode or not result.is_file():
            reason = next((line for line in done.stdout.splitlines() if line.startswith("!")), "it made no PDF")
            is_package = re.search(r"File `[^']+\.(sty|cls|def|fd)' not found", reason)
            raise UserError(
                f"pdflatex failed on {tex}: {reason.lstrip('! ')}", fix=INSTALL_HINT if is_package else f"less {log}"
            )
        write_bytes(pdf, result.read_bytes())
    return pdf


def escape(text: str) -> str:
    """Escape text for pdflatex; a character that its fonts lack becomes its code point (`U+4E2D`).

    Fonts would join hyphens to a dash, so that `--scale` could not be copied.
    """
    pairs = itertools.pairwise(f"{text} ")
    return "".join(_escaped(sign) + "{}" * ({sign, after} <= _JOINED) for sign, after in pairs)


def _escaped(sign: str) -> str:
    if sign.isspace():
        return " "
    is_printed = ord(sign) < 256 and sign.isprintable()
    return _SPECIAL.get(sign) or (sign if is_printed else f"U+{ord(sign):04X}")


def _render_one(table: Table) -> str:
    groups, rules = _headings(table.columns)
    return _environment.from_string(_TABLE).render(
        name=table.name,
        title=escape(table.title),
        caption=escape(table.caption),
        alignment="l" + "".join("c" for _ in table.columns),
        width=len(table.columns) + 1,
        has_groups=bool(rules),
        groups=groups,
        rules=rules,
        titles=" & ".join(["", *(escape(column.title) for column in table.columns)]),
        sections=[
            {
                "title": escape(section.title),
                "rows": [
                    " & ".join([_row_title(row.title, row.is_reference), *(_entry(entry) for entry in row.entries)])
                    for row in section.rows
                ],
            }
            for section in table.sections
        ],
        remarks=[escape(text) for text in (*table.notes, *(r for section in table.sections for r in section.remarks))],
    )


def _headings(columns: Sequence[Column]) -> tuple[str, str]:
    """The line of group headings and the rules below them."""
    headings, rules, at = [""], [], 2
    for group, members in itertools.groupby(columns, key=lambda column: column.group):
        span = len(list(members))
        headings.append(rf"\multicolumn{{{span}}}{{c}}{{{escape(group)}}}")
        if group:
            rules.append(rf"\cmidrule(lr){{{at}-{at + span - 1}}}")
        at += span
    return " & ".join(headings), " ".join(rules)


def _row_title(title: str, is_reference: bool) -> str:
    r"""The first cell; one that begins with a bracket or a star would be read as an option of the `\\` before it."""
    written = escape(title)
    if is_reference:
        return rf"\textit{{{written}}}"
    return f"{{}}{written}" if written.startswith(("[", "*")) else written


def _entry(entry: TableEntry) -> str:
    number = escape(entry.text)
    if entry.mark is Mark.BEST:
        number = rf"\textbf{{{number}}}"
    elif entry.mark is Mark.SECOND:
        number = rf"\underline{{{number}}}"
    note = rf"\textsuperscript{{{escape(entry.note)}}}" if entry.note else ""
    half_width = rf"{{\tiny\,$\pm${entry.half_width_text}}}" if entry.half_width_text else ""
    return number + note + half_width
