"""Models by name: the catalogue, loading, and the zoo of small models trained on the spot."""
