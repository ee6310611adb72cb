"""What this machine has of all that the harness can use, and the command that brings the rest."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from harness.errors import UserError


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked for."""

    what: str
    is_present: bool
    detail: str


def findings() -> Iterator[Finding]:
    """Everything that decides which suites can run here and which outputs are written."""
    for package in ("torch", "transformers", "mlflow", "submitit", "pandas", "scipy"):
        try:
            yield Finding(package, True, metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Finding(package, False, "pip install -c constraints.txt -e .")
    yield _command("sbatch", "SLURM", "only --launch local")
    yield _command(
        "pdflatex", "LaTeX", "tables are written but not compiled: apt-get install texlive-latex-recommended"
    )
    yield _cuda()
    yield _records()
    yield from _easyedit()


def _command(program: str, what: str, otherwise: str) -> Finding:
    path = shutil.which(program)
    return Finding(what, path is not None, path or otherwise)


def _easyedit() -> Iterator[Finding]:
    from methods.easyedit import checkout
    from methods.easyedit.commands import described

    try:
        yield Finding("EasyEdit", True, described(checkout.find()))
    except UserError as error:
        yield Finding("EasyEdit", False, f"only backend: native; {error}")
    lacking = checkout.absent()
    detail = (
        f"without {', '.join(lacking)}: pip install -c constraints.txt -e '.[easyedit]'" if lacking else "all there"
    )
    yield Finding("EasyEdit's needs", not lacking, detail)


def _records() -> Finding:
    folder = os.environ.get("HARNESS_DATA")
    if not folder:
        return Finding("records", False, "built-in world; set HARNESS_DATA or --data")
    is_there = Path(folder).expanduser().is_dir()
    return Finding("records", is_there, folder if is_there else f"HARNESS_DATA: no such folder: {folder}")


def _cuda() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("CUDA", False, f"torch cannot be imported: {error}")
    if torch.cuda.is_available():
        return Finding("CUDA", True, torch.cuda.get_device_name(0))
    return Finding("CUDA", False, "no device; cells run on the CPU")
