"""LoRA and its variants: one job's weights, and the adapters of a pack on the frozen layers of their base."""
