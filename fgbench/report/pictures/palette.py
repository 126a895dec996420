"""Colours of backends and of a request's states, the same on paper and in the terminal."""

# Okabe and Ito's palette: told apart with every common colour blindness; yellow left out, too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
STATE_COLOURS = {"queued": "#E69F00", "swapped": "#CC79A7", "prefill": "#56B4E9", "decode": "#0072B2"}


def colour(style: int) -> str:
    return COLOURS[style % len(COLOURS)]
