"""Plugins: one folder per kind of data, each with the same four names."""
