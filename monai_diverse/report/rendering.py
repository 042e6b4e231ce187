"""What the pages share: templates with their filters, figures as pictures in the page, numbers as text."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from monai_diverse.report.style import significant


def render(template: str, filters: Mapping[str, Any], **values: Any) -> str:
    """A page from a template of this folder; text in `values` is escaped.

    Args:
        template: file name.
        filters: functions that make text, by name, beside those that all pages have.
        values: by the names that the template uses; an unknown one is an error.
    """
    environment = Environment(
        loader=PackageLoader("monai_diverse", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": _count, "interval": interval, "pretty": _pretty, "rounded": significant, "signed": signed, **filters}
    return environment.get_template(template).render(values)


def png(figure: Figure) -> bytes:
    """A figure as PNG, 150 dots an inch."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def encoded(content: bytes) -> str:
    """Bytes in base64, as a page holds them."""
    return base64.b64encode(content).decode()


def interval(ends: Sequence[float | None] | None, form: str = ".3f") -> str:
    """An interval as text; `none` where there is none."""
    low, high = ends or (None, None)
    return "none" if low is None or high is None else f"{low:{form}} to {high:{form}}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds, or from two minutes on minutes."""
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _count(number: int) -> str:
    return f"{number:,}"


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False)
