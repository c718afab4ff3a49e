"""`python -m influray`: the command line."""

from influray.cli import main

main()
