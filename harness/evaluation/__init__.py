"""Evaluation of edited models: probes, protocols, scores and the unedited reference."""
