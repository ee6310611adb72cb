"""The results store: folders that appear whole, scored answers, provenance, and their import into MLflow."""
