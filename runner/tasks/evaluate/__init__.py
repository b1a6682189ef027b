"""`task=evaluate`: draws a fixed set of images and measures them."""
