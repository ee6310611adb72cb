"""Models: the catalogue, module layouts, loading, weight edits, and tiny models trained on the spot."""
