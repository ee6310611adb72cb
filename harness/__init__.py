"""A benchmark harness for knowledge editing: run suites of methods, models and datasets, and report comparable results."""

__version__ = "0.1.0"
