"""A notebook-first research pipeline for crypto machine learning."""

__version__ = "0.1.0"
