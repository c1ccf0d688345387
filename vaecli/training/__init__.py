"""Training: the loop, checkpoints, run directories, several seeds."""
