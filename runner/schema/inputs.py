"""What goes into a job: the base model and the images."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from runner.schema.knob import Settings, default_of, knob

Precision = Literal["fp32", "bf16", "fp16"]


class ModelSettings(Settings):
    """Group `model`: the frozen base. In a job's identity its files stand for their names."""

    family: Literal["sd", "sdxl", "sd3", "flux"] = knob(
        "sdxl",
        doc="Architecture: `sd` is Stable Diffusion 1.x and 2.x, `sdxl` is Stable Diffusion XL, `sd3` is Stable "
        "Diffusion 3 and 3.5, `flux` is FLUX.1.",
    )
    path: str = knob(
        "embedded",
        min_length=1,
        identity=False,
        doc="Hub id, folder or `.tar.gz` in diffusers layout, here or in S3 (`s3://bucket/folder/`); a single "
        "`.safetensors` file, with `config`; `embedded` is the miniature that comes with the package.",
    )
    config: str | None = knob(
        None,
        min_length=1,
        identity=False,
        doc="For a single file as `path`: a folder in diffusers layout with the configurations and tokenizers of that "
        "kind of model, and with weights of what the file does not hold.",
    )
    revision: str | None = knob(None, identity=False, doc="Branch, tag or commit on the Hub.")
    variant: str | None = knob(None, identity=False, doc="File variant on the Hub, such as `fp16`.")
    vae: str | None = knob(
        None,
        identity=False,
        doc="Hub id, folder or `.tar.gz`, here or in S3, of a VAE that takes the place of the model's own (SDXL: the "
        "fp16 fix).",
    )
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = knob(
        None,
        doc="What the model predicts: the noise, the velocity or the image; null takes it from the model's scheduler "
        "configuration.",
    )
    zero_terminal_snr: bool | None = knob(
        None,
        doc="Whether the last timestep is noise alone (arXiv 2305.08891), in training and sampling; not where noise is "
        "predicted. Null takes it from the model's scheduler configuration.",
    )
    resolution: int = knob(64, ge=8, unit="px", identity=False, doc="Side of the square images the model was made for.")
    precision: Precision = knob("fp32", identity=False, doc="Precision the model is usually trained in.")

    @model_validator(mode="after")
    def _fits_the_layout(self) -> ModelSettings:
        single = self.path.endswith(".safetensors")
        if single and self.path.startswith("s3://"):
            raise ValueError(f"path = {self.path!r}: single files are read from disks only; give a folder in S3")
        if single and self.config is None:
            raise ValueError(
                f"config = None: {self.path} is a single file, which does not say how the model is built; give "
                "model.config=<folder in diffusers layout with the configurations and tokenizers of this kind of model>"
            )
        for key in ("revision", "variant") if single else ("config",):
            if (value := getattr(self, key)) is not None:
                kind = "a single file" if single else "what is no single file"
                raise ValueError(f"{key} = {value!r}: has no effect with {kind} as model.path; remove it")
        return self


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
