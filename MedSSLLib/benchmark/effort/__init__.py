"""How much must be drawn until a model is good, by a scripted person."""
