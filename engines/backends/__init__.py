"""Ways to make an engine of a network: one module each, imported only when asked for.

Every module has the three functions of engines.engine.Backend: `available`, which says why a backend cannot be used
here, `build`, which compiles a network into a folder, and `load`, which makes an engine of that folder.
"""
