"""`python -m recsys` is the program `recsys`."""

from recsys.cli.main import main

main()
