"""Drawing with what was trained: one loaded base, any mix of adapters, the same images as in training."""
