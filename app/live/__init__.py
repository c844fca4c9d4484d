"""What people do now: the log of interactions in Postgres, followed by every worker (docs/decisions/0010)."""
