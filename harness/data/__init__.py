"""Editing datasets: read upstream files into a `Dataset`. Start at `harness.data.load`."""
