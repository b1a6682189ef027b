"""What this machine keeps between commands: encoded images and captions, and how long steps took."""
