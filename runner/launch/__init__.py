"""From the jobs of a command to their end: what is said before it starts, the launch, and how it went."""
