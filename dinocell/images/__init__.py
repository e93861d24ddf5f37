"""Image files of any kind, read as gray planes."""
