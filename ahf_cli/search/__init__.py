"""Searches: trials asked of a sampler, trained by processes, committed one by one."""
