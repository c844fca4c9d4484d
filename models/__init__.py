"""The recommender library: no web, no SQL, no Redis; usable from a notebook."""
