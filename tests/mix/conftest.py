from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from tests.train.bench import bench, pipeline_of

__all__ = ["bench"]

Parts = dict[str, nn.Module]


@pytest.fixture(scope="session")
def sdxl_parts(sdxl_folder: Path) -> Parts:
    model = pipeline_of(sdxl_folder)
    return {"unet": model.unet, "text_encoder": model.text_encoder, "text_encoder_2": model.text_encoder_2}


@pytest.fixture(scope="session")
def sd15_parts(sd15_folder: Path) -> Parts:
    model = pipeline_of(sd15_folder)
    return {"unet": model.unet, "text_encoder": model.text_encoder}
