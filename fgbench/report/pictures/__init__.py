"""The pictures of a comparison: ``contents`` says what each shows, ``paper`` and ``terminal`` draw them.

A picture (``picture``) is plain values, so paper (PNG, PDF) and terminal show the same.
"""
