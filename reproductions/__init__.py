"""Minimal reproductions of the roadmap's papers, one file each."""
