"""What is recorded of a training, by its name in `metrics.jsonl` and its mirror."""

from __future__ import annotations

HELD_OUT = "validation/loss"
EARLIER = "validation/earlier_loss"
"""On the images of the training that this one started from."""
TRAIN_LOSS = "train/loss"
GRAD_NORM = "train/grad_norm"
LEARNING_RATE = "train/lr"
IMAGES_PER_S = "train/images_per_s"
