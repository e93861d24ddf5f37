"""The run folder, the model folder and the report of a fine-tuning run."""
