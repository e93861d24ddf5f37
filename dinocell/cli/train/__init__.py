"""Commands that make a model, in the order of work."""
