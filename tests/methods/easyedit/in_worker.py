"""What tests have a worker do in the place of EasyEdit's code."""

import os
import random
import time
from pathlib import Path

import numpy as np
import torch

from harness.errors import UserError
from methods.easyedit.inside import Applied, Inside, Wrapped


class AddOne(Inside):
    """Adds one to a weight of the last block for each request; says that it may change the first block's too."""

    def apply(self, requests):
        parameters = dict(self.bench.loaded.model.named_parameters())
        names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)]
        with torch.no_grad():
            parameters[names[1]][0, 0] += len(requests)
        os.environ["LEAKED"] = "yes"
        drawn = {"random": random.random(), "numpy": np.random.rand(), "torch": float(torch.rand(()))}
        trainable = float(all(parameter.requires_grad for parameter in parameters.values()))
        self.bench.loaded.model.requires_grad_(False)
        return Applied(tuple(names), {**drawn, "trainable": trainable})


class Doubled(Wrapped):
    """A wrapper whose logits are those of the next id up; `before` is counted."""

    def apply(self, requests):
        self.asked = 0
        model = self.bench.loaded.model

        def forward(**given):
            output = model(**given)
            output.logits = output.logits.roll(1, dims=-1)
            return output

        self.wrapper = forward
        return Applied(diagnostics={"requests": float(len(requests))})

    def before(self, query, is_forced):
        self.asked += 1

    def scope(self, queries):
        return [float(self.asked)] * len(queries)

    def revert(self):
        self.wrapper = None


class Breaks(Inside):
    """Fails in the middle of an act."""

    def apply(self, requests):
        print("about to fail")
        with torch.no_grad():
            self.bench.loaded.model.get_parameter("model.layers.1.mlp.down_proj.weight").add_(1)
        raise ZeroDivisionError("no\nsuch luck")


class RunsOut(Inside):
    """Needs more memory than the GPU has."""

    def apply(self, requests):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")


class Sleeps(Inside):
    """Never comes back."""

    def apply(self, requests):
        time.sleep(600)
        return Applied()


def users_mistake(loaded, home):
    raise UserError("nothing there", fix="bring it")


def environment(loaded, home, name):
    return os.environ.get(name)


def working_directory(loaded, home):
    return str(Path.cwd())


def weights_of(loaded, home):
    from harness.models.weights import weight_hash

    return weight_hash(loaded.model)


def dtypes_of(loaded, home):
    return {str(parameter.dtype) for parameter in loaded.model.parameters()}


def settings_of_torch(loaded, home):
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fills": torch.utils.deterministic.fill_uninitialized_memory,
    }
