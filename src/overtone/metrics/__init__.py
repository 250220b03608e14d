"""Metrics: dictionaries and rows in, numbers out."""
