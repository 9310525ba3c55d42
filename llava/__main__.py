"""`python -m llava`: the command line."""

from llava.cli import main

main()
