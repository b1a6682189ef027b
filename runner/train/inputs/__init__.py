"""What a job trains on: images, noise and captions, encoded once and drawn anew at every step."""
