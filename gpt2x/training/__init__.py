"""Training: one loop for every task, and what it needs to stop and go on exactly."""
