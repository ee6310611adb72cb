"""One document of several suites: their tables and figures as LaTeX, compiled to one PDF where pdflatex is installed."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from harness import registry
from harness.errors import UserError
from harness.files import write_bytes
from harness.store.manifest import Manifest, Options, find_manifest
from reports.common import described

if TYPE_CHECKING:
    from rich.console import Console

_HEAD = r"""\documentclass[10pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage[a4paper,landscape,margin=15mm]{geometry}
\usepackage{booktabs,graphicx}
\setcounter{secnumdepth}{0}
% tables and figures stay where they are, below the heading of their suite, and fit on a page
\makeatletter
\newsavebox{\placed}
\newenvironment{inplace}[1]{%
  \par\bigskip\noindent\begin{lrbox}{\placed}\begin{minipage}{\linewidth}\centering\def\@captype{#1}%
}{%
  \end{minipage}\end{lrbox}%
  \ifdim\dimexpr\ht\placed+\dp\placed>.95\textheight \resizebox*{!}{.95\textheight}{\usebox{\placed}}%
  \else\usebox{\placed}\fi\par
}
\renewenvironment{table*}[1][]{\inplace{table}}{\endinplace}
\renewenvironment{figure*}[1][]{\inplace{figure}}{\endinplace}
\makeatother
"""


def write_document(
    store: Path,
    name: str,
    description: str,
    suites: Sequence[str],
    scale: str,
    console: "Console",
    **options: Unpack[Options],
) -> list[Path]:
    """Combine the reports of several suites, each a section, into `reports/<name>.<scale>/<name>.tex` and `.pdf`.

    It contains the tables and figures that the suites ask for, as `write_report` wrote them.

    Returns:
        The files that were written; none if no suite has a report. A failure of pdflatex costs the PDF, and one line says why.
    """
    from reports.latex import compile_all, escape

    found = []
    for suite in suites:
        with contextlib.suppress(UserError):  # not run, or not like this
            found.append(find_manifest(store, suite, scale, **options))
    variants = dict.fromkeys(each.variant for each in found if each.variant)
    folder = store / "reports" / ".".join([name, scale, *variants])
    parts = [(each, part) for each in found if (part := "\n".join(_section(store, each, folder)))]
    if not parts:
        return []
    title = rf"\title{{{escape(description or name)}}}" + rf"\author{{{escape(f'{name} at {scale} scale')}}}\date{{}}"
    contents = "\n".join([r"\begin{itemize}", *(_entry(each) for each, _ in parts), r"\end{itemize}\clearpage"])
    text = "\n".join(
        [
            _HEAD,
            title,
            r"\begin{document}",
            r"\maketitle",
            contents,
            *(part for _, part in parts),
            r"\end{document}",
            "",
        ]
    )
    tex = folder / f"{name}.tex"
    write_bytes(tex, text.encode())
    made, failure = compile_all([tex])
    if failure:
        console.print(failure, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return [tex, *made]


def _section(store: Path, manifest: Manifest, folder: Path) -> Iterator[str]:
    """The files of a suite's report that exist; paths are relative to the document."""
    from reports.latex import escape

    report = store / "reports" / manifest.name
    tables = [file for name in manifest.tables if (file := report / f"{name}_table.tex").is_file()]
    figures = {name: file for name in manifest.figures if (file := report / f"{name}_figure.pdf").is_file()}
    if not (tables or figures):
        return
    yield rf"\section{{{escape(_title(manifest))}}}"
    for table in tables:
        yield rf"\input{{{_from(folder, table)}}}"
    for name, figure in figures.items():
        yield r"\begin{figure*}"
        yield rf"\includegraphics[width=\linewidth,height=.8\textheight,keepaspectratio]{{{_from(folder, figure)}}}"
        yield rf"\caption{{{escape(described(registry.figures.get(name)))}}}"
        yield r"\end{figure*}"
    yield r"\clearpage"


def _title(manifest: Manifest) -> str:
    return manifest.suite.replace("_", " ").capitalize()


def _entry(manifest: Manifest) -> str:
    """A line of the contents: the suite and its size."""
    from reports.latex import escape

    return rf"\item {escape(_title(manifest))}, {len(manifest.cells)} cells"


def _from(folder: Path, file: Path) -> str:
    return Path(os.path.relpath(file, folder)).as_posix()
