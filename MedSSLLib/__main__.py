"""``python -m MedSSLLib`` is the ``medssl`` command."""

from MedSSLLib.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
