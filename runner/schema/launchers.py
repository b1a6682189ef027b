"""All kinds of launchers, told apart by their name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from runner.schema.launching import LocalLauncher
from runner.schema.sagemaker import SageMakerLauncher
from runner.schema.slurm import SlurmLauncher

LauncherSettings = Annotated[LocalLauncher | SlurmLauncher | SageMakerLauncher, Field(discriminator="name")]

APART = ("sagemaker",)
"""Kinds whose machines share no files with this one: they fetch from the Hub themselves, and the locks of what
runs there cannot be seen here."""
