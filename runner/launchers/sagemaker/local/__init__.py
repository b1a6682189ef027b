"""`launcher.local=true`: the same image, inputs and results in containers on this machine, with folders for S3."""
