"""Group `method`: how images and captions become a training signal."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from runner.schema.knob import Settings, default_of, knob


class TextToImage(Settings):
    """`method=text_to_image`: each image with its caption."""

    name: Literal["text_to_image"] = knob("text_to_image", doc="Which method.")


class DreamBooth(Settings):
    """`method=dreambooth`: a subject from a few images, and what its class looked like before (arXiv 2208.12242).

    The images' caption is `dataset.instance_prompt`, or that of their `dataset_info.json`.
    """

    name: Literal["dreambooth"] = knob("dreambooth", doc="Which method.")
    prior: Literal["images", "base", "none"] = knob(
        "images",
        doc="What keeps the class as it was: `images` of it are trained beside those of the subject; or, without any, "
        "the `base` model's own prediction for the class prompt on the subject's noisy images; or `none`.",
    )
    prior_loss_weight: float = knob(1.0, gt=0, le=100, doc="Weight of the prior's loss beside that of the subject's.")
    class_prompt: str | None = knob(
        None,
        min_length=1,
        identity=False,  # a part of the identity of its own, wherever it comes from (runner.data.classes)
        doc="What the subject is one of, such as `a photo of a dog`; null takes it from `dataset_info.json`.",
    )
    class_data_dir: str | None = knob(
        None,
        min_length=1,
        identity=False,
        doc="Folder of images of the class, here or in S3; null takes `class_data_dir` of `dataset_info.json`, if it "
        "names one. Their own captions are not used.",
    )
    num_class_images: int = knob(
        100,
        ge=0,
        le=100_000,
        unit="images",
        doc="How many images of the class there are to be: what the folder lacks is drawn by the base model, once for "
        "all jobs.",
    )
    class_guidance_scale: float = knob(5.0, ge=0, doc="Classifier-free guidance of the images that are drawn.")
    class_inference_steps: int = knob(
        25, ge=1, le=1000, unit="sampling steps", doc="Steps of the sampler that draws them, which is `scheduler`."
    )

    @model_validator(mode="after")
    def _takes_effect(self) -> DreamBooth:
        used = {
            "prior_loss_weight": self.prior != "none",
            "class_prompt": self.prior != "none",
            "class_data_dir": self.prior == "images",
            "num_class_images": self.prior == "images",
            "class_guidance_scale": self.prior == "images" and self.num_class_images > 0,
            "class_inference_steps": self.prior == "images" and self.num_class_images > 0,
        }
        idle = [key for key, takes in used.items() if not takes and getattr(self, key) != default_of(self, key)]
        if idle:
            because = f"method.prior={self.prior}" if self.prior != "images" else "method.num_class_images=0"
            raise ValueError(f"{idle[0]} = {getattr(self, idle[0])!r}: has no effect with {because}; remove it")
        return self


MethodSettings = Annotated[TextToImage | DreamBooth, Field(discriminator="name")]
