"""Editing methods: one module or folder each, all behind `methods.base`."""
