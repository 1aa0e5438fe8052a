"""What `ahf` survives: kills, damage, full disks, lost machines; `python -m benchmarks.reliability` tries it.

The tests run the same experiments in short form.
"""
