"""Editing methods: one module or package each, all subclasses of `harness.api.Method`."""
