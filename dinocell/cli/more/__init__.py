"""Further commands."""
