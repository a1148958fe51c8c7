"""Writes docs/performance.md from what the bench has saved: python -m scripts.performance.

results.py reads the rows, tables.py puts figures into words, summary.py holds them against what was asked, blocks.py
has the parts of the page and plots.py draws.
"""
