"""`python -m harness.models.convert MODEL`: convert the pickled weights of a folder or a hub model to safetensors.

GPT-J-6B is published only as a pickle, which is downloaded if it is not on this machine. The new files are next to the old
ones. Pickles are read with torch's restricted unpickler, which builds nothing but tensors, so no code in them is executed.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

from harness.errors import UserError
from harness.models import hub
from harness.models.architecture import COMPUTED
from harness.models.checkpoint import PICKLES, WEIGHT_INDEX, local_folder


def convert(folder: Path) -> list[Path]:
    """Convert each pickled weight file of a folder to safetensors, and write the weight index.

    Tensors that share memory are written once, under the first name; buffers that a model computes itself (masks and
    rotary tables of old versions) are left out.

    Raises:
        UserError: if there are no pickled weights, or a file contains anything but tensors.
    """
    import torch
    from safetensors.torch import save_file

    pickles = sorted(folder.glob(PICKLES))
    if not pickles:
        raise UserError(
            f"no {PICKLES} in {folder}", fix="name the folder or the hub id of a model with pickled weights"
        )
    written: list[Path] = []
    weight_map: dict[str, str] = {}
    for number, path in enumerate(pickles, start=1):
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (UnpicklingError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{path} cannot be read as tensors only: {reason}", fix="download it again") from None
        kept: dict[str, torch.Tensor] = {}
        seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
        for name, tensor in tensors.items():
            place = (tensor.data_ptr(), tensor.shape, tensor.stride())
            if place not in seen and not name.endswith(COMPUTED):
                seen.add(place)
                kept[name] = tensor.contiguous()
        target = folder / f"model-{number:05d}-of-{len(pickles):05d}.safetensors"
        unfinished = target.with_suffix(".part")
        save_file(kept, unfinished, metadata={"format": "pt"})
        unfinished.rename(target)
        weight_map.update(dict.fromkeys(kept, target.name))
        written.append(target)
    unfinished = folder / f"{WEIGHT_INDEX}.part"
    unfinished.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1), encoding="utf-8")
    unfinished.rename(folder / WEIGHT_INDEX)
    return written


def main(arguments: Sequence[str]) -> int:
    """Convert the named folder or hub model; print errors in one line."""
    try:
        if len(arguments) != 1:
            raise UserError("name one folder or hub id", fix="python -m harness.models.convert MODEL")
        for path in convert(local_folder(arguments[0]) or hub.pickled_snapshot(arguments[0])):
            print(path)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
