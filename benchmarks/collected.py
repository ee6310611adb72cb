"""Collect the JSON files of several benchmarks in one file, `results.json`, the output of `benchmarks/gpu.sh`.

python -m benchmarks.collected FOLDER NAME [NAME …] [--incomplete REASON …]
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from harness.files import write_json


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the files that exist, write one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collected", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with NAME.json of each benchmark, as written by --out")
    parser.add_argument("names", nargs="+", metavar="NAME", help="benchmarks; one without a file has no results")
    parser.add_argument("--incomplete", nargs="+", default=[], metavar="REASON", help="what could not be measured")
    options = parser.parse_args(arguments)
    files = {name: options.folder / f"{name}.json" for name in options.names}
    results = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    write_json(options.folder / "results.json", {"benchmarks": results, "incomplete": options.incomplete})


if __name__ == "__main__":
    main()
