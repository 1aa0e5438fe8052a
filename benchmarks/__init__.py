"""The cost of the core: `python -m benchmarks` measures it, keeps the numbers and draws the tables.

Needs torch, numpy and the core only: `ahf_cli.optim` with the declarations beside it, and the models of
`ahf_cli.tasks` with their initial weights.
"""
