"""`task=deploy`: an endpoint of SageMaker that draws with a base model and many adapters."""
