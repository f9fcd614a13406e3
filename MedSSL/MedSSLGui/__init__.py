"""The Slicer side of MedSSL: panels, jobs, scene. No science lives here; the library works in its own process."""
