"""The default prompts.

Those for a subject are the lists of DreamBooth (Ruiz et al. 2023, arXiv 2208.12242, published with its data set): 25
for things and 25 for people and animals, with `{}` for the subject. The neutral ones show nothing that anybody would
teach.
"""

from __future__ import annotations

from runner.schema.tasks.evaluate import Evaluate

PLACES = (
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of pink fabric",
    "on top of a wooden floor", "with a city in the background", "with a mountain in the background",
    "with a blue house in the background", "on top of a purple rug in a forest",
)  # fmt: skip
THINGS = (
    "with a wheat field in the background", "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background", "floating on top of water", "floating in an ocean of milk",
    "on top of green grass with sunflowers around it", "on top of a mirror",
    "on top of the sidewalk in a crowded street", "on top of a dirt road", "on top of a white rug",
)  # fmt: skip
CLOTHES = (
    "wearing a red hat", "wearing a santa hat", "wearing a rainbow scarf", "wearing a black top hat and a monocle",
    "in a chef outfit", "in a firefighter outfit", "in a police outfit", "wearing pink glasses",
    "wearing a yellow shirt", "in a purple wizard outfit",
)  # fmt: skip
LOOKS = ("red", "purple", "shiny", "wet", "cube shaped")

SUBJECT = {
    "object": tuple(f"a {{}} {where}" for where in (*PLACES, *THINGS)) + tuple(f"a {look} {{}}" for look in LOOKS),
    "live": tuple(f"a {{}} {where}" for where in (*PLACES, *CLOTHES)) + tuple(f"a {look} {{}}" for look in LOOKS),
}
"""By `subject_kind`."""

NEUTRAL = (
    "a photo of a wooden chair in an empty room",
    "a bowl of fruit on a kitchen table",
    "a street with parked cars on a rainy day",
    "a portrait of an old man with a beard",
    "a portrait of a young woman, smiling",
    "a lake between mountains in the morning",
    "a red bicycle against a brick wall",
    "a cat asleep on a sofa",
    "a horse on a meadow",
    "a watercolor painting of a harbor",
    "a black and white photo of a bridge",
    "a plate of pasta, seen from above",
    "a bookshelf full of books",
    "an airplane in a cloudless sky",
    "a group of people in a park",
    "the skyline of a city at night",
)
"""For the drift from the base: an adapter should change none of these."""


def prompts_of(settings: Evaluate) -> tuple[str, ...]:
    """The prompts for a subject, with `{}` in its place: those that were given, or DreamBooth's."""
    return settings.prompts or SUBJECT[settings.subject_kind]
