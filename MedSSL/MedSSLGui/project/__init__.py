"""The open project: its cases, what is known of them, words of advice."""
