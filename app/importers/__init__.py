"""Data sets into Postgres: one file per format."""
