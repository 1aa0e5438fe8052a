"""What `ahf` survives: kills, damage, full disks, lost machines.

`make test` runs these experiments in short form, `make test-long` at length (`tests/test_reliability.py`,
`tests/test_postgres.py`).
"""
