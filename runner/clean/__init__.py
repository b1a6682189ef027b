"""What could be freed of jobs, caches and an AWS account, and freeing what is confirmed.

Finding never writes. What a completed job needs is never found: weights, manifest, config, metrics, log, report.
"""
