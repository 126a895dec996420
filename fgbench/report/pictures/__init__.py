"""The pictures of a comparison: what each shows (one module a picture), and who draws them.

A picture is plain values, so ``paper`` (PNG, PDF) and ``terminal`` draw the same.
"""
