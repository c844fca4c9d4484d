"""What recommenders learn from."""
