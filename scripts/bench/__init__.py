"""Measures Facet against what the machine can do and against what people run today: python -m scripts.bench [what…].

One module for each subject, with one function `measure(options, ceiling)` that returns rows (record.py). What all of
them share: ceiling.py (what the machine can do), turns.py (A B A B), pictures.py and sentences.py (what is sent),
served.py and load.py (servers as processes, and the load on them), baseline.py and export.py (the server that stands
for what people run today).
"""
