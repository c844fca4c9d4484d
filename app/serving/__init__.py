"""One recommendation request, step by step: start at `pipeline`."""
