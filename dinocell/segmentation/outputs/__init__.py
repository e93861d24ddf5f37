"""Results in the files that other tools open."""
