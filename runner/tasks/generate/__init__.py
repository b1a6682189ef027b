"""`task=generate`: draws images for given prompts, and a sheet of all of them."""
