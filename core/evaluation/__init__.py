"""Metrics, probes, pictures and the report."""
