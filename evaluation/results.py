"""The numbers of results.json from scored pairs."""

from __future__ import annotations

from typing import Any

from evaluation.pairs import Pair
from evaluation.protocols import PROTOCOLS, Protocol, summary
from evaluation.responses import Responses, figures


def numbers(
    pairs: list[Pair], protocol: Protocol = PROTOCOLS["ref-lerf"], responses: Responses | None = None
) -> dict[str, Any]:
    """What `evaluation.protocols.summary` and `evaluation.responses.figures` return, and which predictions are missing
    or had another size than their ground truth, as "<view id>/<sentence id>"."""
    outcomes = [pair.outcome for pair in pairs]
    missing = [f"{p.view.id}/{p.referral.sentence_id}" for p in pairs if p.score.missing]
    resized = [f"{p.view.id}/{p.referral.sentence_id}" for p in pairs if p.score.resized]
    found = summary(protocol, outcomes, responses and responses.localised) | figures(responses, protocol, outcomes)
    return found | {"missing_predictions": missing, "resized_predictions": resized}
