"""What can be typed after ``webai-api``. Each command is imported only when it runs."""

import argparse
from importlib import import_module
from importlib.metadata import version

__all__ = ["parser"]

STORE_HELP = "memory://, sqlite:///FILE or redis://HOST:PORT/DB"


def parser() -> argparse.ArgumentParser:
    """Return the parser; ``arguments.run(arguments)`` then runs the command."""
    root = argparse.ArgumentParser(
        prog="webai-api",
        description="Conversation sessions for LLM agents that survive restarts and retries.",
    )
    root.add_argument("--version", action="version", version=f"webai-api {version('webai-api')}")
    commands = root.add_subparsers(metavar="COMMAND", required=True)
    _serve(commands)
    _chat(commands)
    _sessions(commands)
    return root


def _runs(command: argparse.ArgumentParser, name: str) -> None:
    module, _, function = name.partition(":")

    def run(arguments: argparse.Namespace) -> int:
        exit_code: int = getattr(import_module(f"webai_api.cli.{module}"), function)(arguments)
        return exit_code

    command.set_defaults(run=run)


def _serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    serve = commands.add_parser(
        "serve", help="serve the OpenAI-compatible API", description="Serve the OpenAI-compatible API."
    )
    serve.add_argument("--host", metavar="HOST", help="address to listen on (WEBAI_HOST, 127.0.0.1)")
    serve.add_argument("--port", metavar="PORT", type=_port, help="port to listen on, 0 for any (WEBAI_PORT, 6969)")
    serve.add_argument("--store", metavar="URL", help=f"{STORE_HELP} (SESSION_STORE, else REDIS_*, else memory)")
    serve.add_argument(
        "--embedded", action="store_true", help="without a configured store, use the file data/sessions.db, not memory"
    )
    serve.add_argument("--workers", metavar="N", type=_workers, default=1, help="processes (1)")
    _runs(serve, "serve:run")


def _chat(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    chat = commands.add_parser(
        "chat",
        help="talk to a model that remembers",
        description="Talk to a model in the terminal; the conversation is kept in a session.",
    )
    chat.add_argument("message", nargs="*", help="say this and exit; without it, lines are read until Ctrl-D")
    chat.add_argument("--session", metavar="ID", help="continue this session (a new one)")
    chat.add_argument("--model", metavar="NAME", default="demo", help="the model to talk to (demo)")
    chat.add_argument(
        "--url", metavar="URL", help="a running server, such as http://127.0.0.1:6969; WEBAI_API_KEY is its key"
    )
    _where(chat)
    _runs(chat, "chat:run")


def _sessions(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sessions = commands.add_parser(
        "sessions", help="list, show or clear sessions", description="List, show or clear the sessions of a store."
    )
    verbs = sessions.add_subparsers(metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="list sessions, newest activity first")
    listing.add_argument("--prefix", metavar="TEXT", default="", help="only ids that begin with TEXT")
    listing.add_argument("--limit", metavar="N", type=_count, default=50, help="at most N, 0 for all (50)")
    show = verbs.add_parser("show", help="show the messages of a session")
    show.add_argument("session", metavar="ID")
    show.add_argument("--last", metavar="N", type=_count, help="only the newest N messages")
    clear = verbs.add_parser("clear", help="delete sessions and everything in them")
    clear.add_argument("session", metavar="ID", nargs="+")
    for verb, function in ((listing, "list_sessions"), (show, "show_session"), (clear, "clear_sessions")):
        verb.add_argument("--json", action="store_true", help="print JSON")
        _where(verb)
        _runs(verb, f"sessions:{function}")


def _where(command: argparse.ArgumentParser) -> None:
    command.add_argument("--store", metavar="URL", help=f"{STORE_HELP} (the configured store, else data/sessions.db)")
    command.add_argument("--tenant", metavar="NAME", help="whose sessions, if API keys are used")


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return int(text)


def _workers(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError("workers are a number from 1 to 64")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > 1_000_000:
        raise argparse.ArgumentTypeError("a count is a number from 0 to 1000000")
    return int(text)
