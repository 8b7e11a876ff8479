"""What the command line of `serve` asks for: a decoder with its weights and texts, behind HTTP."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dialect.engine.engine import Engine
from dialect.front import session
from dialect.front.console import Screen
from dialect.front.processes import Processes
from dialect.front.session import Arguments
from dialect.machine.virtual_cpus import start
from dialect.prepared.checkpoint_trees import as_tree
from dialect.prepared.packed_files import read_checkpoint
from dialect.serving.policy import ServingError
from dialect.user import usercode
from dialect.user.usercode import Served
from rewrite.errors import ShardwrightError
from rewrite.source import read_file

TOKEN = "SHARDWRIGHT_TOKEN"  # the variable with the token that clients must send


def serve(args: Arguments, screen: Screen) -> None:
    """Serves a decoder until it is told to end. Raises ServingError, UsageError."""
    server = _server_parts()
    processes = Processes.of(args.hosts)
    start(args.mesh or "", processes.count)
    processes.join()
    try:
        _serve(args, screen, *server)
    except ShardwrightError:
        processes.abandon()
        raise


def _server_parts() -> tuple[Any, ...]:
    """What needs the extra `serve`. Raises ServingError where it is not installed."""
    try:
        from dialect.server.app import Limits, Server
        from dialect.server.run import run
        from dialect.server.texts import Texts
    except ImportError as error:
        hint = 'pip install "shardwright[serve]"'
        raise ServingError(f"the server needs {error.name}", hint=hint) from error
    return Limits, Server, Texts, run


def _serve(args: Arguments, screen: Screen, limits: Any, server: Any, texts: Any, run: Any) -> None:
    decoder = usercode.served(args.function, args.config)
    tokenizer, template, stop = _texts(args, decoder)
    with screen.working("reading the weights"):
        params, draft = _params(decoder, args.weights, "--weights"), drafter_of(args)
    with screen.working("compiling"):
        engine = _engine(args, decoder, params, draft)
    screen.lines(engine.explain().split("\n")[:3])
    if not engine.hosts.leads:
        screen.show(f"process {engine.hosts.number} serves what arrives at process 0")
        return engine.follow()
    name = args.name or args.config or "default"
    token = os.environ.get(TOKEN, "")
    behind = limits(waiting=args.max_waiting)
    served = server(engine, texts(tokenizer, template), name, stop, token, behind)
    screen.show(f"serving {name} at http://{args.host}:{args.port}")
    run(served, args.host, args.port)


def _engine(args: Arguments, decoder: Served, params: Any, draft: Any) -> Engine:
    return Engine(
        decoder.step,
        params,
        decoder.init_cache,
        args.mesh,
        pipeline=session.pipeline(args),
        max_context=args.context,
        rows=args.rows,
        chunk=args.chunk,
        max_pages=args.pages,
        draft=draft,
        draft_length=args.draft_length,
        most_waiting=2 * args.max_waiting,
    )


def drafter_of(args: Arguments) -> Any:
    """What drafts, as `Engine` takes it: a name, passes, or a second decoder with its parameters.

    Raises ServingError, and UsageError where the decoder is not at the place that was named.
    """
    if args.draft and ":" in args.draft and "{" not in args.draft:
        drafter = usercode.served(args.draft, args.draft_config)
        params = _params(drafter, args.draft_weights, "--draft-weights")
        return drafter.step, params, drafter.init_cache
    for option in ("draft_config", "draft_weights"):
        if getattr(args, option):
            said = f"--{option.replace('_', '-')} is of a second decoder"
            raise ServingError(said, hint="name it: --draft FILE.py:FUNCTION")
    return args.draft


def _params(decoder: Served, weights: str | None, option: str) -> Any:
    """The weights of a file, or those that the decoder's own file has."""
    if weights and hasattr(decoder.module, "read_params"):
        return decoder.params("read_params", Path(weights))
    if weights:
        return as_tree(decoder.shapes, read_checkpoint(weights))
    if hasattr(decoder.module, "trained_params"):
        return decoder.params("trained_params")
    raise ServingError(
        f"{decoder.text} comes without trained_params", hint=f"name a checkpoint: {option} FILE"
    )


def _texts(args: Arguments, decoder: Served) -> tuple[Any, str, list[int]]:
    """The tokenizer, the chat template, and the tokens behind which an answer ends."""
    if args.tokenizer:
        tokenizer, about = _of_folder(Path(args.tokenizer))
    else:
        tokenizer, about = decoder.offered("tokenizer", None), {}
    if tokenizer is None:
        hint = "name one: --tokenizer FILE, a tokenizer.json or its folder"
        raise ServingError(f"{args.function} comes without a tokenizer", hint=hint)
    template = about.get("chat_template") or decoder.offered("chat_template", "")
    if args.chat_template:
        template = read_file(args.chat_template, "chat template")
    names = [name for name in (args.stop or about.get("eos_token"),) if name]
    numbers = [tokenizer.token_to_id(name) for name in names]
    if None in numbers:
        raise ServingError(f"the tokenizer has no token {names[0]!r}")
    return tokenizer, template, numbers or decoder.offered("stop_tokens", [])


def _of_folder(path: Path) -> tuple[Any, dict[str, Any]]:
    """A tokenizer, and what the tokenizer_config.json beside it says."""
    from tokenizers import Tokenizer

    path = path / "tokenizer.json" if path.is_dir() else path
    beside = path.with_name("tokenizer_config.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
        about = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    except Exception as error:  # tokenizers raises Exception itself
        raise ServingError(f"{path} is no tokenizer: {error}") from error
    end = about.get("eos_token")
    return tokenizer, about | {"eos_token": end["content"] if isinstance(end, dict) else end}
