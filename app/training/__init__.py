"""From the interactions in Postgres to an active release."""
