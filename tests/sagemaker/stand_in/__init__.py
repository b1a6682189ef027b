"""AWS on this machine, for tests: real HTTP on loopback, and training jobs that really run. See README.md."""

from .images import Image
from .instances import InstanceType
from .jobs import TrainingJob
from .stand_in import StandIn

__all__ = ["Image", "InstanceType", "StandIn", "TrainingJob"]
