"""Jobs and their folders: what a job is, which others it builds on, and how workers share a list of them.

Knows nothing about where jobs run or how they are trained.
"""
