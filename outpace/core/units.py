"""Numbers in readable form."""

GIB = 1024**3
MIB = 1024**2


def count(n: float) -> str:
    """1234567 -> '1.23M'."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= 0.9995 * size:  # 999,999 is 1M, not 1e+03k
            return f"{n / size:.3g}{letter}"
    return f"{n:.0f}"


def gib(n_bytes: float) -> str:
    """Bytes as GiB, or MiB when small."""
    return f"{n_bytes / GIB:.2f} GiB" if n_bytes >= GIB / 10 else f"{n_bytes / MIB:.1f} MiB"


def gb(n_bytes: float) -> str:
    """Bytes as GB, as disks and networks count them, or MB when small."""
    return f"{n_bytes / 1e9:,.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """3725 -> '1h02m'."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86400}d{s % 86400 // 3600:02d}h"
