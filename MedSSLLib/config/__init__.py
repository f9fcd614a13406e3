"""Settings: every default, and the messages for those that do not fit."""
