"""Processes beside the application: command lines, the queue, long work in small steps, installing."""
