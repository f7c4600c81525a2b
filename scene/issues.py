"""Problems of a dataset that do not stop the work."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from utils.errors import UserError

log = logging.getLogger("refersplat")


@dataclass
class IssueLog:
    """Counts issues by kind, and logs each kind once with its first five items."""

    strict: bool = True  # damaged files and refusals raise; `scene.check` collects them instead
    items: dict[str, list[str]] = field(default_factory=dict)  # what was found, by kind
    harmless: set[str] = field(default_factory=set)  # kinds that are no faults
    fatal: set[str] = field(default_factory=set)  # kinds that `train.py` refuses
    refusal: str | None = None  # why the scene cannot be used at all

    def add(self, kind: str, item: str, harmless: bool = False, fatal: bool = False) -> None:
        """Add `item` under `kind`, a plural that says what was found and what happens to it."""
        self.items.setdefault(kind, []).append(item)
        if harmless:
            self.harmless.add(kind)
        if fatal:
            self.fatal.add(kind)

    @contextmanager
    def collect_errors(self, kind: str = "damaged files", fatal: bool = True) -> Iterator[None]:
        """Turn a UserError into an issue of `kind`, unless `strict`; the same message counts once."""
        try:
            yield
        except UserError as error:
            if self.strict:
                raise
            if not any(str(error) in items for items in self.items.values()):
                self.add(kind, str(error), fatal=fatal)

    def refuse(self, reason: str) -> None:
        """Refuse the scene: raise UserError if `strict`, else keep the first reason."""
        if self.strict:
            raise UserError(reason)
        self.refusal = self.refusal or reason

    def write_log(self) -> None:
        """Log one warning per kind."""
        for kind, items in self.items.items():
            log.warning("%s: %d (%s)", kind, len(items), first_five(items))


def first_five(items: list[str]) -> str:
    """The first five items, and how many follow."""
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
