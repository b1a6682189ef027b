"""The endpoint: one base model and many adapters behind `/ping` and `/invocations`, as SageMaker requires."""
