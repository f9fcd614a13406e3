"""The panels, one file each. A panel owns its widgets and talks to the others through the session only."""
