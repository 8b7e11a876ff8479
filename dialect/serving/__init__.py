"""Serving: which requests run in a step, and on which pages.

Plain Python without JAX. The same arguments give the same decisions on every host.
"""
