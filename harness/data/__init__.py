"""Editing data: upstream files in, `DataSet` out. Start at `harness.data.load`."""
