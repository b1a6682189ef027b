"""`python -m runner.gallery DIR`: a local page to compare trainings side by side and to draw with their adapters."""
