"""How the page looks, as it stands in `style.css` beside this."""

from __future__ import annotations

from pathlib import Path

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
