"""The command line. Every verb imports what it runs only when it runs: `netloom version` must not pay for aiohttp."""

from netloom.cli.app import main

__all__ = ["main"]
