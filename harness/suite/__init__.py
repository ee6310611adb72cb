"""Suites: load a YAML file, resolve its names, apply a scale and check its options."""

from harness.suite.entries import DataEntry, MethodEntry, ModelEntry, Suite
from harness.suite.load import load_suite
from harness.suite.schedule import Schedule
from harness.suite.schema import suite_json_schema

__all__ = ["DataEntry", "MethodEntry", "ModelEntry", "Schedule", "Suite", "load_suite", "suite_json_schema"]
