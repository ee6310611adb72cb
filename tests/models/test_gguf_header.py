"""Headers of GGUF files, compared with what llama.cpp's own package writes and reads."""

import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.constants import GGML_QUANT_SIZES

from harness.errors import UserError
from harness.models.gguf_header import TYPES, read_header
from tests.helpers.tiny_gguf import FFN, HIDDEN, LAYERS, VOCAB, write_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "two-blocks.gguf")


def test_the_header_tells_shape_vocabulary_and_precision_without_the_tensors(file):
    header = read_header(file)
    assert header.architecture == "llama"
    assert header.values["llama.block_count"] == LAYERS
    assert header.vocab == VOCAB
    assert header.quantisation == {"F32": 3 + 9 * LAYERS}
    assert header.parameters == 2 * VOCAB * HIDDEN + HIDDEN + LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * FFN + 2 * HIDDEN)


def test_tensors_and_values_are_those_that_the_package_gguf_reads(file):
    header, reader = read_header(file), GGUFReader(file)
    assert {name: (each.kind, each.sizes, each.n_bytes) for name, each in header.tensors.items()} == {
        each.name: (each.tensor_type.name, tuple(map(int, each.shape)), int(each.n_bytes)) for each in reader.tensors
    }
    read = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    lists = {key: len(value) for key, value in read.items() if isinstance(value, list)}
    assert header.lengths == lists
    assert header.values == {key: value for key, value in read.items() if key not in lists}


def test_the_sizes_of_types_are_those_of_the_package_gguf():
    for number, (name, block, n_bytes) in TYPES.items():
        kind = GGMLQuantizationType(number)
        assert (name, (block, n_bytes)) == (kind.name, GGML_QUANT_SIZES[kind])


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model" * 100, b"GGUF\x09\x00\x00\x00" + bytes(16)])
def test_a_file_that_is_no_gguf_is_one_line(tmp_path, content):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.gguf is truncated or not a GGUF file"):
        read_header(path)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.999])
def test_a_file_cut_off_anywhere_is_one_line(file, tmp_path, share):
    whole = file.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"cut\.gguf is truncated"):
        read_header(path)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"gone\.gguf: no such file"):
        read_header(tmp_path / "gone.gguf")
