"""Editing data: upstream files in, `Dataset` out. Start at `harness.data.load`."""
