"""The command line: verbs onto the pipeline. What prints is here."""

from influray.cli.app import main

__all__ = ["main"]
