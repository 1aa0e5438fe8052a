"""The laboratory on a machine with a GPU and without internet: `python -m benchmarks.gpu`.

`pack` collects the missing wheels and Fashion-MNIST where there is internet; `run` tests, measures and trains
on the GPU machine, part by part, and resumes an unfinished part.
"""
