"""The process in which EasyEdit runs: `python -m methods.easyedit.worker FD HOME`, started and called by `process.Worker`.

It has its own copy of the model, whose weights are synchronised with the caller's before each edit run. EasyEdit's changes to
environment variables, random generators, caches, tokenizers and the working directory are confined to this process.
"""

import importlib
import os
import queue
import resource
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from harness.errors import InsufficientMemoryError, UserError
from harness.models.catalogue import ModelRef
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.models.weights import changed, wide_fingerprint
from harness.records import EditRequest
from harness.tokens import Query
from methods.easyedit import loader
from methods.easyedit.editor import FLOAT32
from methods.easyedit.inside import Applied, Bench, Inside, Wrapped, seed_all
from methods.easyedit.process import Failure

WEIGHTS = "weights.safetensors"
SURVIVED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT)
"""Signals that SLURM sends to all processes of a job before its end, and that the job's own process survives."""


class Host:
    """The worker's interface: the caller can call each public method by name.

    Args:
        home: folder of the checkout.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        loader.install(home)
        self._loaded: LoadedModel | None = None
        self._given: Mapping[str, str] = {}
        self._act: Inside | None = None
        self._applied = Applied()

    def load(self, ref: ModelRef, device: str, threads: int, is_deterministic: bool) -> None:
        """Load the model as the caller did, but in float32, and with the settings that EasyEdit expects.

        EasyEdit loads float32 unless a file of hyper-parameters says otherwise (editor.py:115). The weights are those of the
        caller's model, rounded to its precision.
        """
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(is_deterministic)
        # as in the caller's process: filling unused memory would add to the timed work of both
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        loaded = load(replace(ref, dtype=FLOAT32), device)
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter.copy_(parameter.to(getattr(torch, ref.dtype)))
        name = ref.published or ref.name  # EasyEdit recognises model types by name, which a folder does not give
        loaded.model.config._name_or_path = loaded.model.name_or_path = name
        loaded.tokenizer.model_input_names = ["input_ids", "attention_mask"]
        self._loaded = loaded

    def differing(self, wanted: Mapping[str, str]) -> list[str]:
        """Paths of the modules whose parameters differ from a `wide_fingerprint`.

        Raises:
            RuntimeError: if the fingerprint covers different modules.
        """
        here = wide_fingerprint(self._model.model)
        if here.keys() != wanted.keys():
            raise RuntimeError(f"the worker's model has different modules: {sorted(here.keys() ^ wanted.keys())[:3]}")
        self._given = wanted
        return [path for path, found in here.items() if found != wanted[path]]

    def take(self, file: Path) -> None:
        """Overwrite parameters with those in a file."""
        from safetensors.torch import load_file

        with torch.no_grad():
            for name, value in load_file(file).items():
                self._model.model.get_parameter(name).copy_(value)

    def run(self, place: str, *arguments: Any) -> Any:
        """Call `module:function` of an adapter with the model, the checkout's folder and these arguments."""
        return _named(place)(self._model, self._home, *arguments)

    def begin(
        self,
        inside: str,
        options: Mapping[str, Any],
        workarounds: Sequence[str],
        artifacts: Mapping[str, Path],
        seed: int,
    ) -> None:
        """Set up an edit run; not timed."""
        tokenizer = self._model.tokenizer
        tokenizer.pad_token_id, tokenizer.padding_side = tokenizer.eos_token_id, "left"  # editor.py:145-183
        if "trainable-again" in workarounds:
            self._model.model.requires_grad_(True)
        seed_all(seed)
        bench = Bench(self._model, options, frozenset(workarounds), artifacts, self._home, seed)
        self._act = _named(inside)(bench)
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)  # pending work must not be timed
            torch.cuda.reset_peak_memory_stats(self._model.device)

    def apply(self, requests: Sequence[EditRequest]) -> None:
        """Apply all requests of the edit run."""
        assert self._act is not None
        self._applied = self._act.apply(requests)
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)

    def diagnostics(self) -> dict[str, float]:
        """Diagnostics of the edit run, with its peak memory."""
        on_device = self._model.device.type == "cuda"
        peak = (
            torch.cuda.max_memory_allocated(self._model.device)
            if on_device
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        return {**self._applied.diagnostics, "worker_peak_memory_bytes": float(peak)}

    def hand_over(self) -> Path:
        """Write all parameters of the modules that the edit run changed or may have changed, in float32; return the file."""
        from safetensors.torch import save_file

        model = self._model.model
        touched = {
            f"{path}.{leaf}": parameter
            for path in {name.rpartition(".")[0] for name in self._applied.touched}
            for leaf, parameter in model.get_submodule(path).named_parameters(recurse=False)
        }
        weights = {**touched, **changed(model, self._given, wide_fingerprint(model))}
        # clones, because safetensors rejects tensors that share storage
        save_file({name: value.detach().cpu().clone() for name, value in weights.items()}, WEIGHTS)
        return Path(WEIGHTS).absolute()

    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """Query the wrapper."""
        return self._wrapped.teacher_forced(queries)

    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """Query the wrapper."""
        return self._wrapped.generate(queries)

    def scope(self, queries: Sequence[Query]) -> list[float] | None:
        """Query the wrapper."""
        return self._wrapped.scope(queries)

    def revert(self) -> None:
        """Remove the wrapper from the model."""
        self._wrapped.revert()
        self._act = None

    @property
    def _model(self) -> LoadedModel:
        assert self._loaded is not None
        return self._loaded

    @property
    def _wrapped(self) -> Wrapped:
        assert isinstance(self._act, Wrapped)
        return self._act


def _named(place: str) -> Any:
    """Import the object that `module:name` refers to."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _failure(error: Exception) -> Failure:
    said, trace = " ".join(str(error).split()), traceback.format_exc()
    if isinstance(error, UserError):
        return Failure(error.message, error.fix, "user", trace)
    if isinstance(error, torch.OutOfMemoryError | InsufficientMemoryError):
        return Failure(said, None, "memory", trace)
    return Failure(f"{type(error).__name__}: {said}", None, "bug", trace)


def serve(connection: Connection, home: Path) -> None:
    """Serve calls until the caller disconnects or dies, even in the middle of an edit run, and whatever signals it survives."""
    for number in SURVIVED:
        signal.signal(number, signal.SIG_IGN)
    calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
    folder = Path.cwd()

    def listen() -> None:
        try:
            while True:
                calls.put(connection.recv())
        except (EOFError, OSError):
            shutil.rmtree(folder, ignore_errors=True)  # a killed caller could not do it
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    host: Host | None = None
    while True:
        verb, arguments = calls.get()
        try:
            host = host or Host(home)
            answer = getattr(host, verb)(*arguments)
        except Exception as error:
            answer = _failure(error)
        sys.stdout.flush()
        connection.send(answer)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), Path(sys.argv[2]))
