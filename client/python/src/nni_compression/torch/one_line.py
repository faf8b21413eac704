"""One line that compresses a model: `prune` and `quantize`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Optional, TypeVar, Union

from torch import nn

from ..adapters.algorithms import ALGORITHMS
from ..errors import InvalidArgumentError
from . import filter_pruners, modules, pruners, quantizers
from .compressor import Compressor
from .weights import TorchWeight, find_weights, is_transposed_linear

_log = logging.getLogger("nni_compression")

M = TypeVar("M", bound=nn.Module)
Rules = Sequence[Mapping[str, Any]]
Names = Union[str, Sequence[str]]

# Keyword arguments of the compressor; all others are options of the rule.
_OF_COMPRESSOR = (
    "optimizer",
    "server",
    "client",
    "session",
    "labels",
    "lease",
    "on_lost_session",
    "on_bad_weight",
    "transfer",
    "statistic_parameters",
    "example_inputs",
    "statistics_batch_num",
)
_FILTERS = ("op_types", "op_names", "op_names_re")
_ATTRIBUTE = "compressor"


def prune(
    model: M, algorithm: str = "level", *, config_list: Optional[Rules] = None, **options: Any
) -> M:
    """Prunes a model in place and returns it; `model.compressor` is the pruner.

    >>> model = prune(model, "agp", final_sparsity=0.8, end_epoch=10)
    >>> model.compressor.update_epoch(epoch)

    Without `config_list` there is one rule, with `options`, for the layers that are usually
    compressed. Embeddings, the output layer of a language model (`lm_head`) and the parameters of
    adapters such as LoRA's are left out, which a line in the log reports, unless a filter names
    them: `op_names=[...]` (or patterns) applies to the layers that it names, and `op_types` with
    "Embedding" to embeddings too.

    Args:
        model: any module. A copy of it has the answers, and None as its `compressor`.
        algorithm: of the server: "level", "agp", "global_magnitude", "lamp", "lottery_ticket",
            "random", or the name of a plugin or script.
        config_list: the rules instead, as of the classes: they apply as they stand.
        options: of the rule, `op_types` and `op_names` among them, and keyword arguments of the
            class, such as `server`.
    """
    return _compressed(model, "Pruner", algorithm, config_list, options)


def quantize(
    model: M, algorithm: str = "qat", *, config_list: Optional[Rules] = None, **options: Any
) -> M:
    """Quantizes a model in place and returns it; `model.compressor` is the quantizer.

    >>> model = quantize(model, "qat", quant_bits=4, group_size=128)

    As `prune`, with "qat", "naive", "dorefa", or the name of a plugin or script.
    """
    return _compressed(model, "Quantizer", algorithm, config_list, options)


def _compressed(
    model: M, kind: str, algorithm: str, config_list: Optional[Rules], options: Mapping[str, Any]
) -> M:
    others = {key: options[key] for key in _OF_COMPRESSOR if key in options}
    rule = {key: value for key, value in options.items() if key not in others}
    if config_list is not None and rule:
        raise TypeError(
            f"config_list and {sorted(rule)} are both given; a config_list has all the options"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    if not isinstance(getattr(model, _ATTRIBUTE, None), (Compressor, type(None))):
        raise InvalidArgumentError(
            f"the model has an attribute {_ATTRIBUTE!r} of its own; use a class, such as AGPPruner"
        )
    made = _class_of(kind, algorithm)(
        rules_for(model, rule) if config_list is None else config_list, **others
    )
    made(model)
    setattr(model, _ATTRIBUTE, made)
    return model


def _class_of(kind: str, algorithm: str) -> Any:
    listed = {each.name: each for each in ALGORITHMS}.get(algorithm)
    if listed is not None and listed.kind != kind:
        function = "prune" if listed.kind == "Pruner" else "quantize"
        raise InvalidArgumentError(f"{algorithm!r} is a {listed.kind.lower()}; use {function}()")
    places = (pruners, filter_pruners) if kind == "Pruner" else (quantizers,)
    if listed is not None:
        return next(filter(None, (getattr(each, listed.class_name, None) for each in places)))
    return type(f"{algorithm}{kind}", (getattr(places[0], kind),), {"algorithm": algorithm})


def rules_for(model: nn.Module, rule: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A rule for a model, and one that excludes what it is not meant for; see `prune`."""
    if "op_names" in rule or "op_names_re" in rule:
        return [dict(rule)]
    weights = find_weights(model)
    types = rule.get("op_types", ["default"])
    types = [types] if isinstance(types, str) else list(types)
    if "op_types" not in rule and any(is_transposed_linear(weight.op) for weight in weights):
        types.append("Conv1D")
    left_out = _left_out(model, weights, types)
    _log_left_out(left_out)
    rules = [{**rule, "op_types": types}]
    # A rule that names a tied weight has to give all of its names.
    names = [n for w in weights if w.name in left_out for n in (w.name, *w.aliases)]
    if names:
        rules.append({"op_names": names, "exclude": True})
    return rules


def _left_out(
    model: nn.Module, weights: Sequence[TorchWeight], types: Sequence[str]
) -> dict[str, str]:
    """Layer name -> what it is, of those that a rule without names is not meant for."""
    outputs = _output_layers(model)
    adapters = _adapter_modules(model)
    found = {}
    for weight in weights:
        own = [place.module for place in weight.places]
        plain = {modules.plain_class(module) for module in own}
        names = (weight.name, *weight.aliases)
        if any(id(module) in adapters for module in own) or any(map(_is_lora, names)):
            found[weight.name] = "adapter's"
        elif any(issubclass(cls, (nn.Embedding, nn.EmbeddingBag)) for cls in plain):
            if not {cls.__name__ for cls in plain} & set(types):
                found[weight.name] = "embedding"
        elif any(id(module) in outputs for module in own) or any(
            name.rpartition(".")[2] == "lm_head" for name in names
        ):
            found[weight.name] = "output layer"
    return found


def _output_layers(model: nn.Module) -> set[int]:
    """The ids of what transformers calls output embeddings."""
    getters = (getattr(module, "get_output_embeddings", None) for module in model.modules())
    found: set[int] = set()
    for getter in getters:
        if callable(getter):
            try:
                layer = getter()
            except (AttributeError, NotImplementedError):  # a model without
                continue
            found.add(id(layer))
    return found


def _adapter_modules(model: nn.Module) -> set[int]:
    """The ids of modules that adapters of peft have added, whatever the kind of adapter."""
    found: set[int] = set()
    for module in model.modules():
        for name in getattr(module, "adapter_layer_names", ()):
            added = module._modules.get(name)
            if added is not None:
                found.update(id(inner) for inner in added.modules())
    return found


def _is_lora(name: str) -> bool:
    return any(part.startswith("lora_") for part in name.split("."))


def _log_left_out(left_out: Mapping[str, str]) -> None:
    if not left_out:
        return
    kinds = list(left_out.values())
    counts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
    names = list(left_out)
    _log.warning(
        "left out: %s weights (%s%s); op_names compresses the layers that it names, and "
        "config_list anything",
        ", ".join(counts),
        ", ".join(names[:3]),
        f" and {len(names) - 3} more" if len(names) > 3 else "",
    )
