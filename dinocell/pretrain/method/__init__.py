"""Student, teacher, heads and losses of stage 1."""
