"""The sub-commands of ``medssl``: one small function each, which imports its worker only when it runs."""
