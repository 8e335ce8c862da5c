"""Many experiments at once: which there are, who works on them, and what came of each."""
