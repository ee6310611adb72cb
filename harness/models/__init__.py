"""Models by name: the catalogue, layouts, loading, edited weights, and tiny models trained on the spot."""
