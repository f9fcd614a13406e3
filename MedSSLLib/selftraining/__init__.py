"""Self-training in rounds: pseudo-labels, their clean-up, and joint training on them."""
