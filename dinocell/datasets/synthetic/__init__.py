"""The embedded sample: generated microscopy with exact labels."""
