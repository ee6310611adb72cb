"""A language model judges the answers of finished cells."""
