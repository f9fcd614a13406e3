"""What everything stands on: errors, events, files, locks, hashes, interrupts."""
