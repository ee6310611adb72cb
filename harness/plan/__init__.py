"""From a suite to its cells, artifacts and jobs. Pure: nothing here imports torch or runs anything."""
