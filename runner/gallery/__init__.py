"""`python -m runner.gallery DIR`: a local page to look at trainings side by side, and to draw with what they made."""
