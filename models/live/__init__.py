"""What people do now: decayed counts and co-visits, pure functions of the set of events."""
