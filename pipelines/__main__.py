"""`python -m pipelines` is the command `catchment`."""

from pipelines.cli import main

main()
