"""Reports of runs: results, diagnostics, plots, overlays, HTML."""
