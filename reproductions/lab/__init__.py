"""Shared building blocks of the reproductions: data, tiny models, training, metrics."""

from reproductions.lab.result import Result

__all__ = ["Result"]
