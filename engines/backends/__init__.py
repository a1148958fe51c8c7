"""Ways to make an engine of a network: one module each, imported only when asked for.

Every module has `available() -> str | None` (None, or the reason why it cannot be used) and
`load(network, device) -> Engine`; a backend that compiles has `build` as well.
"""
