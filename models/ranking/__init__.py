"""Recommenders that order candidates found by others."""
