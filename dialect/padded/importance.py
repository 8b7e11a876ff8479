"""How much every hidden unit, query head and layer matters on a text, as a file that `prune` reads.

    {"d_ff": [[..]], "q_per_kv": [[..]], "layers": [..]}

Of an axis there is an array for every set of weights that share it, in the order of the parameters:
one for all layers of a loop, [layers, .., n], or one for each that is written out, [.., n].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rewrite.errors import PipelineError
from rewrite.source import read_file

LAYERS = "layers"
Importance = Mapping[str, list[np.ndarray]]


def written(importance: Importance, path: Path) -> None:
    """Writes it, six digits of a number."""
    plain = {
        name: [np.vectorize(lambda x: float(f"{x:.6g}"))(array).tolist() for array in arrays]
        for name, arrays in importance.items()
    }
    path.write_text(json.dumps(plain), encoding="utf-8")


def read(path: str) -> dict[str, list[np.ndarray]]:
    """What `written` wrote. Raises PipelineError for a file that holds anything else."""
    text = read_file(path, "importance", PipelineError)
    hint = "shardwright eval ... --importance FILE writes one"
    try:
        found = {
            str(name): [np.asarray(array, np.float64) for array in arrays]
            for name, arrays in json.loads(text).items()
        }
        if all(np.isfinite(array).all() for arrays in found.values() for array in arrays):
            return found
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise PipelineError(f"{path!r} holds no importance: {error}", hint=hint) from error
    raise PipelineError(f"{path!r} holds importance that is no number", hint=hint)
