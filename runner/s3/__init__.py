"""Amazon S3 as a place for data, models and results: addresses, objects, and copies of them on this machine.

It knows nothing about jobs and launchers, nor what the objects mean. boto3 is imported only for requests to S3.
"""

from __future__ import annotations

from runner.s3.location import Location, is_s3

__all__ = ["Location", "is_s3"]
