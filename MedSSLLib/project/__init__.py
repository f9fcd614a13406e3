"""Projects and their runs: manifest, folder layouts, roles, metadata."""
