"""Amazon S3 as a place for data, models and results: addresses, what lies there, and copies of it on this machine.

It knows nothing of jobs and launchers, nor what the objects mean. boto3 is imported when S3 is asked.
"""

from __future__ import annotations

from runner.s3.location import Location, is_s3

__all__ = ["Location", "is_s3"]
