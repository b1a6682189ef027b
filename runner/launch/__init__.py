"""From a command's jobs to their end: what is announced before the start, the launch, and the outcome."""
