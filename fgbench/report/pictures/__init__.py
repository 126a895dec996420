"""The pictures of a comparison. ``contents`` makes them, ``paper`` and ``terminal`` draw them.

A picture (``picture``) consists of plain values, so PNG, PDF and terminal show the same.
"""
