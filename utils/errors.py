"""The exception for user mistakes, and the exit codes of scripts."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in input, flags or environment that the user can fix.

    The message says what was found, what was expected, which path or flag, and what to do.
    """


def run(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit with its return code (None means 0).

    A `UserError` or a GPU out of memory prints one message and exits with code 2, Ctrl-C exits with 130. Any other
    exception is a bug and keeps its traceback.
    """
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; not every script imports torch
            raise
        print(
            f"error: the GPU is out of memory: {str(error).splitlines()[0]} Use smaller images (-r), lower "
            "--plan_memory, stop other programs on the GPU, or use --device cpu.",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)
