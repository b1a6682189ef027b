"""A local page to look at trainings and to draw with them."""
