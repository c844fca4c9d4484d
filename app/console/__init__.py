"""The pages served to a browser."""
