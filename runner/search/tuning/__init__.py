"""A search run by SageMaker: what it may choose, the tuning job, and its trials as the jobs of a sweep.

Knows the launcher's account, places and results; does not know Hydra.
"""
