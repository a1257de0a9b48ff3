"""`python -m elder_service` is `elder-server`."""

from __future__ import annotations

from elder_service.cli import main

if __name__ == "__main__":
    main()
