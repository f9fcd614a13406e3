"""Live training: one process that learns while a person draws, and shows what it has learnt."""
