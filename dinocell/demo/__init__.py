"""The whole pipeline on the embedded sample."""
