"""What works with methods that teach new words, and what does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from runner.schema.family import TRANSFORMERS
from runner.schema.method import NewTokens, Pivotal, TextualInversion
from runner.schema.training import Prodigy

if TYPE_CHECKING:
    from runner.schema.experiment import Experiment


IDLE_WITHOUT_LORA = {
    "lora_plus_ratio": "which trains no up-projections",
    "weight_decay": "whose vectors are not decayed",
}
"""Settings of optimizers that have no effect on new words, with the reason."""


def word_faults(experiment: Experiment) -> Iterator[str]:
    """Settings that do not work with the words that an experiment teaches, or have no effect then."""
    method, lora = experiment.method, experiment.lora
    if not isinstance(method, NewTokens):
        return
    if experiment.model.family in TRANSFORMERS:
        yield (
            f"method.name = {method.name!r}: cannot be used with model.family={experiment.model.family}, one of whose "
            "text encoders is T5, for which no program reads new words; choose another method, or sd or sdxl"
        )
    if experiment.dataset.caption_dropout == 1:
        yield (
            f"dataset.caption_dropout = 1.0: leaves out every caption, and with method.name={method.name} new words "
            "are learnt from captions alone; lower it"
        )
    if isinstance(method, TextualInversion):
        alone, fix = "with method.name=textual_inversion, ", "remove it, or choose method=pivotal"
        yield from lora.idle(because=f"{alone}which trains no LoRA", fix=fix, where="lora.")
        optimizer = experiment.optimizer
        for key, reason in IDLE_WITHOUT_LORA.items():
            # Prodigy has no LoRA+.
            if key in type(optimizer).model_fields:
                yield from optimizer.idle(key, because=alone + reason, fix=fix, where="optimizer.")
        return
    if isinstance(method, Pivotal) and method.token_lr is not None and isinstance(experiment.optimizer, Prodigy):
        yield (
            f"method.token_lr = {method.token_lr}: Prodigy estimates one rate for all weights; set "
            "method.token_lr=null, or choose another optimizer"
        )
    if lora.text_encoder:
        yield (
            f"lora.text_encoder = true: with method.name={method.name} only the new words are trained in the text "
            "encoders; remove it"
        )
    if lora.init_from is not None:
        yield (
            f"lora.init_from = {lora.init_from!r}: cannot be used with method.name={method.name}, because that file "
            "does not hold its words; remove it"
        )
