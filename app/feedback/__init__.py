"""What users do: durable ingestion and each user's own recent past."""
