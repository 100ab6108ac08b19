"""GenAI KB: a roadmap of generative AI whose claims are measured."""

__version__ = "0.1.0"
