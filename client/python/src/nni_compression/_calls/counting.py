"""The calls that find thresholds, each with one round of counts more than the one before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Union

from .._wire import frames
from ..errors import CompressionError, InternalError, InvalidArgumentError, InvalidTypeError
from ..values.magnitudes import ROUND_BITS, Counter, Rounds, Threshold
from ..values.masks import Mask
from .exchange import MaskExchange, counts_header


class Counting:
    """Layers that are counted until the server has decided about each.

    Attributes:
        counters: by layer name.
        results: layer name -> the decided threshold, or the mask that the server has.
        errors: layer name -> its error.
    """

    def __init__(self, counters: Mapping[str, Counter]) -> None:
        self.counters = counters
        self.results: dict[str, Union[Mask, Threshold]] = {}
        self.errors: dict[str, CompressionError] = {}
        for name, counter in counters.items():
            if not hasattr(counter, "count") or not hasattr(counter, "bits"):
                raise InvalidTypeError(
                    f"counters[{name!r}] is a {type(counter).__name__}; it must be a Counter: of "
                    "an array, nni_compression.ArrayCounter(array)"
                )
        self._rounds = {name: Rounds(counter) for name, counter in counters.items()}
        self._known = dict.fromkeys(counters, Threshold(0, 0))  # of the layers left
        self._calls = 0

    def requests(self) -> dict[int, frames.Outgoing]:
        """Counts the next round of the layers left: what a call sends. Empty when none is left.

        A weight that is not finite is an error of its layer.
        """
        for name, threshold in list(self._known.items()):
            try:
                self._rounds[name].count(threshold.key, threshold.known_bits)
            except InvalidArgumentError as error:
                message = f'weight of layer "{name}": {error.message}'
                self._fail(name, InvalidArgumentError(message))
        return {i: counts_header(name, self._rounds[name], i) for i, name in enumerate(self._known)}

    def take(self, exchange: MaskExchange) -> None:
        """Takes the outcome of a call.

        Raises InternalError when a threshold changes without end. More calls than a threshold has
        rounds are needed where another rank, or another epoch, has changed it in between.
        """
        self._calls += 1
        for name, error in exchange.errors.items():
            self._fail(name, error)
        for name, answer in exchange.results.items():
            rounds = self.counters[name].bits // ROUND_BITS
            if isinstance(answer, Mask) or answer.known_bits == rounds * ROUND_BITS:
                self.results[name] = answer
                del self._known[name]
            elif self._calls == 3 * rounds + 2:
                raise InternalError(
                    f"the threshold of layer {name!r} is not decided after {self._calls} calls"
                )
            else:
                self._known[name] = answer

    def _fail(self, name: str, error: CompressionError) -> None:
        self.errors[name] = error
        del self._known[name]
