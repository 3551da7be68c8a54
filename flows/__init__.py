"""Flows, their records for people, and the command line."""
