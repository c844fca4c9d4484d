"""Recommenders that find candidates among all items. One file each."""
