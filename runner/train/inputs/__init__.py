"""What a job trains on: images, noise and captions; encoded once, sampled afresh at every step."""
