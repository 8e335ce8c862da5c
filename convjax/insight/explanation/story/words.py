"""Numbers as a page says them."""

from __future__ import annotations

from typing import Any


def number(value: Any) -> str:
    """With three decimals, or as a power of ten where these would tell nothing.

    >>> number(0.25), number(-250.04), number(2e-6)
    ('0.250', '-250.0', '2.00e-06')
    """
    value = float(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def signed(value: Any) -> str:
    """As `number`, with its sign.

    >>> signed(1), signed(-1)
    ('+1.000', '-1.000')
    """
    text = number(value)
    return text if text.startswith("-") else f"+{text}"


def percent(share: Any) -> str:
    """A share of 1 in percent.

    >>> percent(0.965)
    '96.5 %'
    """
    return f"{100 * float(share):.1f} %"
