"""What a run needs and how long it takes: formulas, and programs compiled ahead of time."""
