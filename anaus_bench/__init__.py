"""A benchmark toolkit for self-supervised pre-training on ultrasound images."""

__version__ = "0.1.0"
