"""What goes into a job: the base model and the images."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from runner.schema.knob import Settings, default_of, knob

Precision = Literal["fp32", "bf16", "fp16"]


class ModelSettings(Settings):
    """Group `model`: the frozen base. In a job's identity its files stand for their names."""

    family: Literal["sd", "sdxl"] = knob(
        "sdxl", doc="Architecture: `sd` is Stable Diffusion 1.x and 2.x, `sdxl` is Stable Diffusion XL."
    )
    path: str = knob(
        "embedded",
        min_length=1,
        identity=False,
        doc="Hub id, folder or `.tar.gz` in diffusers layout, here or in S3 (`s3://bucket/folder/`); `embedded` is the "
        "miniature that comes with the package.",
    )
    revision: str | None = knob(None, identity=False, doc="Branch, tag or commit on the Hub.")
    variant: str | None = knob(None, identity=False, doc="File variant on the Hub, such as `fp16`.")
    vae: str | None = knob(
        None,
        identity=False,
        doc="Hub id, folder or `.tar.gz`, here or in S3, of a VAE that takes the place of the model's own (SDXL: the "
        "fp16 fix).",
    )
    prediction_type: Literal["epsilon", "v_prediction"] | None = knob(
        None, doc="What the model predicts; null takes it from the model's scheduler configuration."
    )
    quantization: Literal["none", "int8", "nf4"] = knob(
        "none",
        doc="Keep the denoiser's linear layers in 8 or 4 bits (`nf4` as in QLoRA, arXiv 2305.14314) while adapters are "
        "trained beside them: less memory, not less time.",
    )
    resolution: int = knob(64, ge=8, unit="px", identity=False, doc="Side of the square images the model was made for.")
    precision: Precision = knob("fp32", identity=False, doc="Precision the model is usually trained in.")


class DatasetSettings(Settings):
    """Group `dataset`: images and captions. In a job's identity their content stands for their names."""

    path: str = knob(
        "embedded",
        min_length=1,
        identity=False,
        doc="Folder of images, parquet or arrow file or folder, here or in S3 (`s3://bucket/folder/`); Hub id; or "
        "`embedded` (houses).",
    )
    revision: str | None = knob(None, identity=False, doc="Branch, tag or commit on the Hub.")
    split: str = knob("train", min_length=1, identity=False, doc="Split of a Hub data set.")
    image_column: str = knob(
        "image", min_length=1, identity=False, doc="Column with the image in parquet, arrow and Hub data."
    )
    caption_column: str = knob(
        "text",
        min_length=1,
        identity=False,
        doc="Column (parquet, arrow, Hub) or key (`metadata.jsonl`) with the caption.",
    )
    instance_prompt: str | None = knob(None, identity=False, doc="Caption of every image that has none of its own.")
    caption_dropout: float = knob(
        0.0, ge=0, le=1, unit="share of samples", doc="How often a sample is trained without its caption."
    )
    crop: Literal["center", "random"] = knob("center", doc="Where the square is cut out of a longer image.")
    flip: bool = knob(False, doc="Mirror every second sample, on average.")
    variants: int = knob(4, ge=1, le=64, unit="crops", doc="Random crops encoded per image; used with `crop=random`.")
    skip_unreadable: bool = knob(
        False,
        identity=False,
        doc="Leave out files that cannot be read, or are too small, instead of refusing the data set.",
    )
    max_images: int | None = knob(None, ge=1, unit="images", identity=False, doc="Use only this many images.")
    min_side_px: int = knob(
        32, ge=1, unit="px", identity=False, doc="Images with a shorter side than this are refused."
    )

    @model_validator(mode="after")
    def _takes_effect(self) -> DatasetSettings:
        if self.crop == "center" and self.variants != default_of(self, "variants"):
            raise ValueError(f"dataset.variants = {self.variants}: has no effect with dataset.crop=center; remove it")
        return self


class MethodSettings(Settings):
    """Group `method`: how images and captions become a training signal."""

    name: Literal["text_to_image"] = knob("text_to_image", doc="`text_to_image`: each image with its caption.")
