"""Numbers for people: grouped digits, real minus signs, and units.

Only for the report. They return text; no-break spaces join a number and its unit.
"""

from __future__ import annotations

import math
from datetime import datetime

MINUS = "\N{MINUS SIGN}"
SPACE = "\N{NARROW NO-BREAK SPACE}"
NONE = "\N{EN DASH}"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 6) -> str:
    """Return a number with at least `digits` significant digits and grouped thousands.

    >>> number(1234567), number(-2668.2486295), number(1.5e-7)
    ('1,234,567', '−2,668.25', '1.5 × 10⁻⁷')
    """
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return f"{MINUS if value < 0 else ''}∞"
    if value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif abs(value) < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{float(mantissa):g} × {power_of_ten(int(exponent))}".removeprefix("1 × ")
    else:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{decimals}f}"
    return text.replace("-", MINUS)


def setting(value: float) -> str:
    """Return a number of the config, with its own digits.

    >>> setting(0.001), setting(1e-6)
    ('0.001', '10⁻⁶')
    """
    text = f"{value:g}"
    return number(value, 6) if "e" in text else text


def power_of_ten(exponent: int) -> str:
    """Return `10⁻³` for -3: plain text, the same in charts and sentences."""
    return f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def percent(share: float) -> str:
    """A share of one as a percentage with two significant digits, three from 10 % on.

    >>> percent(0.1234), percent(0.0123), percent(0.000012)
    ('12.3\u202f%', '1.2\u202f%', '< 0.01\u202f%')
    """
    if math.isnan(share):
        return NONE
    if 0 < share < 1e-4:
        return f"< 0.01{SPACE}%"
    return f"{100 * share:.{2 if share < 0.00995 else 1}f}{SPACE}%"


def seconds(value: float | None) -> str:
    """A duration: `320 ms`, `3.2 s`, `3 min 12 s`, `2 h 05 min`."""
    if value is None or math.isnan(value):
        return NONE
    if value < 0.9995:
        return f"{1000 * value:.3g}{SPACE}ms"
    if value < 59.95:
        return f"{value:.1f}{SPACE}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest:02d}{SPACE}s"
    return f"{minutes // 60:,}{SPACE}h {minutes % 60:02d}{SPACE}min"


def size(n_bytes: float | None) -> str:
    """Bytes in binary units: `1.2 GiB`."""
    if n_bytes is None or math.isnan(n_bytes):
        return NONE
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(n_bytes) < 1024 or unit == "TiB":
            break
        n_bytes /= 1024
    return f"{n_bytes:.{0 if unit == 'B' or n_bytes >= 100 else 1}f}{SPACE}{unit}"


def rate(per_second: float | None, what: str = "rows") -> str:
    """A speed: `1.24 million rows/s`."""
    if per_second is None or not math.isfinite(per_second):
        return NONE
    if per_second >= 999_500:
        return f"{per_second / 1e6:.3g} million {what}/s"
    return f"{float(f'{per_second:.3g}'):,.0f} {what}/s"


def moment(text: object) -> str:
    """Return an ISO 8601 time as `5 March 2026, 14:03 UTC`; anything else unchanged."""
    when = parse_time(text)
    if when is None:
        return "" if text is None else str(text)
    zone = when.strftime(" %Z") if when.tzinfo else ""
    return f"{when.day} {when:%B %Y, %H:%M}{zone}"


def parse_time(text: object) -> datetime | None:
    """Return the time of an event; None if it cannot be read."""
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 row`, `2 rows`."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"
