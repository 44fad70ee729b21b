"""Quantities as Kubernetes writes them: "250m", "1.5", "64Mi", "1e3" (k8s.io/apimachinery, pkg/api/resource).

Kept exactly, in thousandths; whoever needs whole units rounds up, as Kubernetes does.
"""

import re
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Final

_NUMBER: Final = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_FORM: Final = re.compile(rf"({_NUMBER})([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{{1,2}})?")
_BINARY: Final = {unit: Decimal(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)}
_POWERS: Final = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_DECIMAL: Final = {unit: Decimal(10) ** power for unit, power in _POWERS.items()}
_MOST: Final = Decimal(2**63 - 1)
_DIGITS: Final = 40


@dataclass(frozen=True, slots=True, order=True)
class Quantity:
    """`milli` is a thousand times the amount, rounded away from zero: less than a thousandth is a thousandth."""

    milli: int

    @classmethod
    def parse(cls, text: str) -> "Quantity":
        """Raises ValueError."""
        match = _FORM.fullmatch(text) if len(text) <= _DIGITS else None
        if match is None:
            raise ValueError(f"{text[:_DIGITS]!r} is no quantity such as 250m, 1.5 or 64Mi")
        number, unit = match.groups()
        amount = Decimal(number)
        if unit in _BINARY:
            amount *= _BINARY[unit]
        elif unit in _DECIMAL:
            amount *= _DECIMAL[unit]
        elif unit:
            amount = amount.scaleb(int(unit[1:]))
        if abs(amount) > _MOST:
            raise ValueError(f"{text!r} is too large")
        return cls(int((amount * 1000).to_integral_value(ROUND_CEILING)))

    @property
    def whole(self) -> int:
        """In units, rounded up: bytes, or whole processors."""
        return -(-self.milli // 1000)
