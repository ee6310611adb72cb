"""A benchmark harness for knowledge editing: a suite file goes in, comparable cells and tables come out."""

__version__ = "0.1.0"
