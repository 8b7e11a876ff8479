"""The report: one HTML page that needs nothing else."""

from __future__ import annotations

from dialect.pages.gathered import Gathered
from dialect.pages.sections import SECTIONS, section
from dialect.pages.style import STYLE
from dialect.pages.tags import Html, joined, tag


def report(gathered: Gathered) -> str:
    """The text of the page."""
    told = gathered.story
    mesh = " ".join(f"{axis}={count}" for axis, count in told.target.mesh)
    title = f"{told.name} for {told.target.topology}" if told.target.topology else told.name
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{title}: report"),
        tag("style", Html(STYLE)),
    )
    links = (tag("li", tag("a", name, href=f"#{anchor}")) for anchor, name, _ in SECTIONS)
    top = tag(
        "header",
        tag("h1", title),
        tag("p", f"Mesh {mesh}. " if mesh else "", f"{told.chips} chips.", class_="soft"),
        tag("p", tag("code", gathered.command)) if gathered.command else Html(""),
        *(tag("p", line, class_="cost") for line in gathered.first),
        tag("nav", tag("ul", *links), aria_label="sections"),
    )
    main = tag("main", *(section(a, name, make(gathered)) for a, name, make in SECTIONS), id="main")
    skip = tag("a", "To the figures", href="#main", class_="skip")
    page = tag("html", head, tag("body", joined([skip, top, main])), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"
