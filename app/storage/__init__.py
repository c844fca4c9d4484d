"""Postgres and Redis: tables, connections, the embedded servers."""
