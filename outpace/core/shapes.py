"""Comparing tensors by name and size only."""

from collections.abc import Mapping

Sizes = Mapping[str, tuple[int, ...]]


def mismatch(expected: Sizes, found: Sizes) -> str:
    """The first three differences by name (missing, unexpected or of another size); empty if there
    are none."""
    faults = [f"no {name}" for name in expected if name not in found]
    faults += [f"unexpected {name[:80]}" for name in found if name not in expected]
    faults += [
        f"{name} is {found[name]}, not {size}"
        for name, size in expected.items()
        if name in found and found[name] != size
    ]
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return "; ".join(faults[:3]) + more
