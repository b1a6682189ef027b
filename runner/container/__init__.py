"""What runs inside a training container: SageMaker's tree of files in, trained jobs out.

It knows the folders of a training container but not how jobs are sent there (`runner.launchers`); jobs are trained by
the same code as on any machine.
"""
