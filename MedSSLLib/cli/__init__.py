"""The command line: parsing, one small function a sub-command, exit codes, streams."""
