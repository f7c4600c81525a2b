"""The one exception for a user's mistake, and how scripts end on it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake of input, flags or environment that the user can mend.

    The message says what was found, what was expected, which path or flag, and what to do.
    """


def run(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit with its return code (None means 0).

    `UserError` prints its message and exits with code 2, as does a GPU without memory; Ctrl-C exits with 130. Any
    other exception is a bug and keeps its traceback.
    """
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; not every program that comes here imports torch
            raise
        print(
            f"error: the GPU has too little memory: {str(error).splitlines()[0]} Make the pictures smaller (-r), give "
            "the kept views less (--plan_memory), free the GPU of other programs, or take --device cpu.",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)
