"""Two processes that serve one decoder, each with half of its chips: on a slice, one per host.

    python -m examples.several_hosts          # on this machine, with four virtual CPU devices

On a TPU slice every host runs the same program: jax.distributed.initialize() finds the others, and
over HTTP it is `shardwright serve FILE.py:FUNCTION --mesh v5e:4x4 --hosts auto`.
"""

import os
import socket
import subprocess
import sys
from functools import partial

HOSTS, CHIPS = 2, 4


def main(number, port):
    """What every host runs: the same steps, of which process 0 decides by what it is asked."""
    import jax

    jax.distributed.initialize(f"127.0.0.1:{port}", HOSTS, number)
    from examples import llama
    from rewrite import Engine

    config = llama.CONFIGS["toy"]
    params = llama.init_params(config, jax.random.key(0))
    step, init_cache = partial(llama.decode_step, config), partial(llama.init_cache, config)
    sizes = {"max_context": 64, "rows": 2, "chunk": 2}
    with Engine(step, params, init_cache, f"cpu:{CHIPS}", **sizes) as engine:
        if number == 0:
            print(engine.generate([[1, 2, 3], [4, 5]], max_new_tokens=8), flush=True)
        else:
            engine.follow()


def start():
    """Both processes, here. Returns the exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = f"--xla_force_host_platform_device_count={CHIPS // HOSTS}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "examples.several_hosts", port]
    hosts = [subprocess.Popen([*command, str(n)], env=environment) for n in range(HOSTS)]
    return [host.wait() for host in hosts]


if __name__ == "__main__":
    if len(sys.argv) > 2:
        main(int(sys.argv[2]), sys.argv[1])
    else:
        sys.exit(max(start()))
