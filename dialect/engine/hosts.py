"""Several processes that run one engine: what arrives at the first is told to all.

Every process has the same scheduler, and makes the same steps of the same arrivals. What could
differ between them is the first one's: the time, who arrived, who left. After every step they
compare what they have done.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dialect.serving.policy import ServingError

_BLOCK = 1 << 14  # bytes that are told at a time
_HEAD = 8  # of them: how long the message is, and what was done so far
_ROOM = _BLOCK - _HEAD


class Hosts:
    """The processes of `jax.distributed`; one without it.

    They talk over their CPU devices, so that nothing waits for a step on the machine.
    """

    def __init__(self) -> None:
        self.count, self.number = jax.process_count(), jax.process_index()
        self._done = 0  # a checksum of all steps
        if self.count > 1:
            self._prepare()

    def talks_over(self, mesh: Mesh) -> bool:
        """Whether steps on this mesh go over the same links: what is told must not meet them."""
        return self.count > 1 and mesh.devices.flat[0].platform == "cpu"

    @property
    def leads(self) -> bool:
        """Whether requests come to this process."""
        return self.number == 0

    def shared(self, value: Any) -> Any:
        """The first process's value, as JSON has it. All processes must call this alike.

        Raises ServingError where one of them is gone, or has done something else.
        """
        if self.count == 1:
            return value
        message, parts, length = json.dumps(value).encode() if self.leads else b"", [], 1
        while len(parts) * _ROOM < length:
            at = len(parts) * _ROOM
            head = np.array([len(message), self._done], np.uint32).tobytes()
            rows = self._heard((head + message[at : at + _ROOM]).ljust(_BLOCK, b"\0"))
            lengths, done = rows[:, :_HEAD].copy().view(np.uint32).T
            _must_be_equal(done)
            length = int(lengths[0])
            parts.append(rows[0, _HEAD:].tobytes())
        return json.loads(b"".join(parts)[:length])

    def did(self, *arrays: np.ndarray) -> None:
        """Adds what was done to what is compared."""
        for array in arrays if self.count > 1 else ():
            self._done = zlib.crc32(np.ascontiguousarray(array), self._done)

    def _heard(self, block: bytes) -> np.ndarray:
        """[processes, bytes], of which this process gives its block."""
        mine = np.frombuffer(block, np.uint8)[None]
        try:
            given = jax.make_array_from_process_local_data(self._apart, mine)
            return np.asarray(self._gather(given))
        except Exception as error:
            raise ServingError(
                f"process {self.number} of {self.count} hears no more of the others",
                hint="one of them has ended: start all of them again",
            ) from error

    def _prepare(self) -> None:
        """Compiles the exchange."""
        first = {device.process_index: device for device in reversed(jax.devices("cpu"))}
        mesh = Mesh([first[number] for number in range(self.count)], ("hosts",))
        self._apart = NamedSharding(mesh, PartitionSpec("hosts"))
        whole = NamedSharding(mesh, PartitionSpec())
        jitted = jax.jit(lambda rows: rows, in_shardings=self._apart, out_shardings=whole)
        rows = jax.ShapeDtypeStruct((self.count, _BLOCK), np.uint8)
        self._gather = jitted.lower(rows).compile()


def _must_be_equal(done: np.ndarray) -> None:
    """Raises ServingError where a process has done something else than the first."""
    for number in np.flatnonzero(done != done[0]):
        raise ServingError(
            f"process {number} has made other steps than process 0",
            hint="all processes must run the same decoder, weights and options",
        )
