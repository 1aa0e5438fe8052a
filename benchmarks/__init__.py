"""The cost of the core: `python -m benchmarks` measures it, keeps the numbers and draws the tables.

Needs torch, numpy and the core (`ahf_cli.optim`, the declarations beside it, `ahf_cli.tasks.initial`, `.models`) only.
"""
