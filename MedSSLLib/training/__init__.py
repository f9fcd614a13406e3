"""The loop, and what every run shares: context, devices, budget, optimisers, checkpoints."""
