"""`task=generate`: images of given prompts, and a sheet of all of them."""
