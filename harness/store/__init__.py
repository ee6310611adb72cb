"""The results store: atomic folders, scored answers, provenance, and import into MLflow."""
