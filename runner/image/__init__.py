"""The image that jobs run in on AWS: built from a checkout, pushed to ECR, recorded for the launcher."""
