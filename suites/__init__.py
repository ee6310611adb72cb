"""The suites and scales that are installed with the harness, as package data."""
