"""Finds what could be freed from jobs, caches and an AWS account, and frees what is confirmed.

Finding never writes. What a completed job needs is never listed: weights, manifest, config, metrics, log, report.
"""
