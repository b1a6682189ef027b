"""`launcher.local=true`: the same image, inputs and results in containers of this machine, with folders for S3."""
