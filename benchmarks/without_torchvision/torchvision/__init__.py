"""Stands in for torchvision where it is not installed: the few transforms of images that training scripts use.

Written for the benchmark with Pillow and torch. It lets a script that imports torchvision run unchanged on a machine
without it, and does no more work than torchvision would. Never put on the path where torchvision is installed.
"""
