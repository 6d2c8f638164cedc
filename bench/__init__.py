"""Measurements: `make bench`. Every figure stands beside something measured in the same run."""
