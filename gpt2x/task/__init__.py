"""Tasks: what a batch is, the head, the loss and the metrics. The training loop knows nothing else of them."""
