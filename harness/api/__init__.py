"""Interfaces for extending the harness: methods, edited models, artifacts, backends and launchers.

A method module declares its spec, hyper-parameters and artifacts without importing torch, so that planning a sweep on a
login node takes a fraction of a second. It imports torch inside the functions that compute.
"""

from harness.api.artifact import ArtifactSpec
from harness.api.backend import Backend, Finding
from harness.api.context import Advance, Clock, Context, Phase
from harness.api.edited_model import EditedModel, Ends, State, TokenScore
from harness.api.hparams import Choice, Hparams, OrChoice
from harness.api.launcher import JobStatus, Launcher, LaunchState, Summary
from harness.api.method import TOKENS_PER_PASS, Method

__all__ = [
    "TOKENS_PER_PASS",
    "Advance",
    "ArtifactSpec",
    "Backend",
    "Choice",
    "Clock",
    "Context",
    "EditedModel",
    "Ends",
    "Finding",
    "Hparams",
    "JobStatus",
    "LaunchState",
    "Launcher",
    "Method",
    "OrChoice",
    "Phase",
    "State",
    "Summary",
    "TokenScore",
]
