"""Classes of several subjects: when what `dataset.sources` say about them has no effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from runner.schema.method import DreamBooth

if TYPE_CHECKING:
    from runner.schema.experiment import Experiment


def class_faults(experiment: Experiment) -> Iterator[str]:
    """What an experiment's sources and method say about the subjects' classes that has no effect."""
    method, sources = experiment.method, experiment.dataset.sources
    for key in ("class_prompt", "class_data_dir"):
        because = ""
        if not isinstance(method, DreamBooth):
            because = "without method=dreambooth"
        elif method.prior == "none" or (method.prior == "base" and key == "class_data_dir"):
            because = f"with method.prior={method.prior}"
        for number, source in enumerate(sources if because else ()):
            yield from source.idle(key, because=because, where=f"dataset.sources.{number}.")
    if not isinstance(method, DreamBooth) or not sources:
        return
    if method.class_prompt is not None and all(source.class_prompt is not None for source in sources):
        yield (
            f"method.class_prompt = {method.class_prompt!r}: has no effect, because each of dataset.sources has a "
            "class_prompt of its own; remove it"
        )
    own = all(source.class_prompt is not None or source.class_data_dir is not None for source in sources)
    if method.class_data_dir is not None and own:
        yield (
            f"method.class_data_dir = {method.class_data_dir!r}: has no effect, because each of dataset.sources has a "
            "class of its own; name its folder there, as class_data_dir"
        )
