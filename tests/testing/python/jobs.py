"""What trainers do with a server, and what has to come of it.

A job is a generator: it yields what the server answered, as bytes. Which bytes these are follows
from the job and its seed alone, however often the server or a connection ends meanwhile: a run that
nobody disturbs tells what they have to be.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Callable

import numpy as np

import nni_compression as nc

Job = Callable[[nc.Client, int], Iterator[bytes]]

SMALL = [nc.Layer(f"fc{i}", "Linear", (64, 512)) for i in range(3)]
LARGE = nc.Layer("large", "Linear", (512, 1024))  # its mask is a file of its own
LAYERS = [*SMALL, LARGE]
# More than one message, so that the server keeps it and is asked for it by digest.
KNOWN = nc.Layer("known", "Linear", (1200, 1000))
ANY = ["default"]
AGP = [{"final_sparsity": 0.9, "end_epoch": 8, "op_types": ANY}]
LEVEL = [{"sparsity": 0.6, "op_types": ANY}]
QAT = [{"quant_types": ["weight", "output"], "op_types": ANY}]
EPOCHS = 8
STEPS = 8


def weights(layers: Iterable[nc.Layer], *seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Weights that follow from the seed."""
    random = np.random.default_rng(seed)
    return {layer.name: random.standard_normal(layer.shape, np.float32) for layer in layers}


def bits(masks: Mapping[str, nc.Mask]) -> bytes:
    """All masks of an answer."""
    return b"".join(masks[name].bits.tobytes() for name in sorted(masks))


def numbers(*values: Any) -> bytes:
    """Numbers of an answer, to the last bit."""
    return b"".join(np.asarray(value).tobytes() for value in values)


def ended(client: nc.Client, session: nc.Session) -> bytes:
    """Closes the session; what its report says then."""
    session.close()
    return client.session_info(session.id).state.encode()


def agp(client: nc.Client, seed: int) -> Iterator[bytes]:
    """A pruner whose every mask depends on the one before."""
    session = client.bind_model("agp", AGP, LAYERS)
    for epoch in range(EPOCHS + 1):
        yield numbers(sorted(session.update_epoch(epoch)))
        yield bits(session.calc_mask(weights(LAYERS, seed, epoch)))
        # What was answered stands at this epoch, whatever the weight is by now.
        yield bits(session.calc_mask(weights(LAYERS, seed, epoch + 1)))
    yield numbers(session.info().epoch)
    yield ended(client, session)


def qat(client: nc.Client, seed: int) -> Iterator[bytes]:
    """A quantizer whose ranges are running means: a step that counts twice or not at all shows."""
    random = np.random.default_rng(seed)
    session = client.bind_model("qat", QAT, SMALL)
    for step in range(1, STEPS + 1):
        seen = {layer.name: (-random.random(), random.random()) for layer in SMALL}
        outputs = session.step(step, outputs=seen).outputs
        yield numbers(*(outputs[name].range for name in sorted(outputs)))
        codes = session.quantize_weight(weights(SMALL, seed, step))
        yield numbers(*(codes[name].codes for name in sorted(codes)))
    yield numbers(session.info().step)
    yield ended(client, session)


def naive(client: nc.Client, seed: int) -> Iterator[bytes]:
    """A quantizer whose scale only grows."""
    session = client.bind_model("naive", [{}], [LARGE])
    for step in range(4):
        answer = session.quantize_weight(weights([LARGE], seed, step))["large"]
        yield numbers(answer.scale, answer.codes)
    yield ended(client, session)


def custom(client: nc.Client, seed: int) -> Iterator[bytes]:
    """Masks that the trainer computes: the session holds them, and nothing else has them."""
    session = client.bind_model("custom_pruner", [{"implementation": "Mine"}], LAYERS)
    for epoch in range(4):
        session.update_epoch(epoch)
        mine = {name: weight > epoch / 4 for name, weight in weights(LAYERS, seed, epoch).items()}
        yield bits(session.set_mask(mine))
        yield bits(session.calc_mask(weights(LAYERS, seed)))
    yield ended(client, session)


def known(client: nc.Client, seed: int) -> Iterator[bytes]:
    """A weight that others send as well: it goes by its digest once the server has it."""
    with client.bind_model("level", [{"sparsity": 0.1 * (seed % 10)}], [KNOWN]) as session:
        yield bits(session.calc_mask(weights([KNOWN], 1)))


def export(client: nc.Client, seed: int) -> Iterator[bytes]:
    """Artifacts."""
    mine = weights(LAYERS, seed)
    with (
        client.bind_model("level", LEVEL, LAYERS) as session,
        tempfile.TemporaryDirectory() as folder,
    ):
        yield bits(session.calc_mask(mine))
        for kind in ("safetensors", "sparse"):
            for file in sorted(session.export(Path(folder) / kind, mine, kind)):
                yield file.read_bytes()


def cancelled(client: nc.Client, seed: int) -> Iterator[bytes]:
    """Calls that end too early, by their deadline and by their connection; then a whole one."""
    mine = weights(LAYERS, seed)
    session = client.bind_model("level", LEVEL, LAYERS)
    for timeout in (0.001, 0.003, 0.01):
        with contextlib.suppress(nc.DeadlineExceededError, nc.UnavailableError):
            session.calc_mask(mine, timeout=timeout)
    with nc.Client(client.server, shm_socket="") as other:
        joined = other.join(session.id)
        caller = threading.Thread(target=_call, args=(joined, mine))
        caller.start()
    caller.join()
    yield bits(session.calc_mask(mine))
    yield ended(client, session)


def closed(client: nc.Client, seed: int) -> Iterator[bytes]:
    """A session that is closed while calls of it are under way."""
    session = client.bind_model("level", LEVEL, LAYERS)
    caller = threading.Thread(target=_call, args=(session, weights(LAYERS, seed)))
    caller.start()
    yield ended(client, session)
    caller.join()


def _call(session: nc.Session, mine: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """A call that may be cut off, or come too late."""
    with contextlib.suppress(nc.CancelledError, nc.FailedPreconditionError, nc.NotFoundError):
        session.calc_mask(mine)


def plugins(client: nc.Client, seed: int) -> Iterator[bytes]:
    """Pruners that the server did not bring with it, where there are any."""
    for algorithm in client.algorithms():
        if algorithm.kind == "pruner" and algorithm.name not in ("level", "agp", "custom_pruner"):
            with client.bind_model(algorithm.name, [algorithm.example], SMALL) as session:
                yield bits(session.calc_mask(weights(SMALL, seed)))


# What depends on the calls before it, so that something could be lost.
REMEMBERING: tuple[Job, ...] = (agp, qat, custom, naive)
ALL: tuple[Job, ...] = (*REMEMBERING, known, export, cancelled, closed, plugins)


SEEDS = 3  # of every job, each a run of its own
# What a job answers for a seed, by the job's name and the seed.
Expected = dict[tuple[str, int], list[bytes]]


class Wrong(Exception):
    """An answer was not what it had to be."""


def quiet_runs(client: nc.Client, which: Iterable[Job]) -> Expected:
    """What these jobs answer on a server that nothing disturbs."""
    return {(job.__name__, seed): list(job(client, seed)) for job in which for seed in range(SEEDS)}


def check(job: Job, seed: int, client: nc.Client, expected: Expected) -> Iterator[None]:
    """Runs a job, and stops after every answer. Raises Wrong."""
    quiet = expected[job.__name__, seed]
    count = 0
    for count, answer in enumerate(job(client, seed), 1):
        if count > len(quiet) or answer != quiet[count - 1]:
            raise Wrong(f"answer {count} of {job.__name__}({seed}) is not that of a quiet run")
        yield
    if count != len(quiet):
        raise Wrong(f"{job.__name__}({seed}) gave {count} answers instead of {len(quiet)}")
