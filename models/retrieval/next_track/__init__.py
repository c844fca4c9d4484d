"""What comes next in a session: counters, neighbours, self-attention, and their blend."""
