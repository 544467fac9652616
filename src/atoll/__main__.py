"""`python -m atoll`: the command line."""

from atoll.cli.main import main

main()
