"""An AWS account as the project uses it: clients, role, names and files in its bucket, the image of its containers."""
