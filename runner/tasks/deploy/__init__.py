"""`task=deploy`: a SageMaker endpoint that draws with a base model and many adapters."""
