"""From a scan to what training reads: its grid, intensities and labels."""
