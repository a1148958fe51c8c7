"""The doctor, python -m server.check: what is installed, what the machine has, what is set, and whether models run.

finding.py says what a finding is, versions.py looks at packages, configured.py at settings, cache folder and port,
inside.py at devices, engines and models, and __main__.py prints what they found. Nothing here is needed to serve.
"""
