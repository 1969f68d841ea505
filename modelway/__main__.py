"""`python -m modelway` and the installed command."""

from __future__ import annotations

from modelway.cli.app import main

if __name__ == "__main__":
    main()
