"""Cells of a notebook, which Python knows by files that are not there.

/tmp/ipykernel_7/3012345.py  ->  In[3]
"""

from __future__ import annotations

import builtins
import linecache


def file_or_cell(file: str) -> str:
    """A file's name, or for a cell of the notebook that runs, `In[3]`: `linecache` knows both."""
    running = getattr(builtins, "get_ipython", None)  # IPython puts it there while a cell runs
    described = running and getattr(running().compile, "format_code_name", None)
    words = described and described(file)
    if not words:
        return file
    source = linecache.getlines(file)
    linecache.cache[words[-1]] = (sum(map(len, source)), None, source, words[-1])
    return words[-1]
