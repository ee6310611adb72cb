"""Output where a terminal or a log file cannot show every character."""

import io
import json
import os
import subprocess
import sys

import pytest

from harness.plain_text import counted, degrade, plain
from tests.helpers.commands import ROOT, environment
from tests.helpers.fake_store import FakeStore


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("✓ 0.85±.02 → λ", "+ 0.85+-.02 -> lambda"),
        ("café", "cafe"),
        ("e\u0301", "e"),
        ("中 ⣟ \udcff", "? ? ?"),
    ],
)
def test_known_symbols_become_words_and_letters_lose_their_accents(text, expected):
    assert plain(text) == expected


def test_a_stream_replaces_only_what_its_encoding_lacks():
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    degrade(latin)
    latin.write("é ± ✓")
    latin.flush()
    assert latin.buffer.getvalue() == "é ± +".encode("latin-1")


@pytest.mark.parametrize(
    "forced", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=lambda each: ",".join(each)
)
def test_commands_degrade_in_a_locale_without_these_characters(forced, tmp_path):
    store = FakeStore(tmp_path).write_suite(models=["tiny/llama"], data=["zsre"])
    commands = [
        ["doctor"],
        ["list", "methods"],
        ["report", "main_table", "--scale", "mini", "--all", "--store", str(store.root)],
        ["explain", store.cells[0], "--store", str(store.root)],
        ["run", "n\u00f6pe"],
    ]
    code = "import json, sys; from harness.cli import main; print([main(each) for each in json.loads(sys.argv[1])])"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        cwd=ROOT,
        env=environment() | {"PATH": os.defpath} | forced,
        capture_output=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == b"[0, 0, 0, 0, 2]", done.stderr.decode()
    assert b"+-" in done.stdout
    assert b" -> python -m harness list suites" in done.stderr
    assert (done.stdout + done.stderr).isascii()


def test_a_noun_agrees_with_its_number():
    assert (counted(1, "record"), counted(1204, "record")) == ("1 record", "1,204 records")
    assert counted(0, "edit repeats", "edits repeat") == "0 edits repeat"
