"""Imported by the process that commands are forked from: most of what a run on small models imports."""

import importlib

for name in (
    "harness.evaluation.protocols",
    "harness.models.loading",
    "harness.models.random_weights",
    "harness.run.local",
    "harness.run.runner",
    "harness.run.start",
    "tests.helpers.commands",
    "transformers.models.gptj.modeling_gptj",
    "transformers.models.llama.modeling_llama",
):
    importlib.import_module(name)
