"""Jobs and their folders: what a job is, which others it takes from, and how workers share a list of them.

Knows nothing of where jobs run or how they are trained.
"""
