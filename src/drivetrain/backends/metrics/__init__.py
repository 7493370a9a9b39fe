"""Metrics: series of measured values, and rules about them, evaluated here or by Prometheus."""
