"""Training: losses and metrics as sums and counts, optimizers, one pure step, and the loop."""
