"""Weights that the server has already are not sent again."""

from __future__ import annotations

import numpy as np
import pytest

import nni_compression as nc
from nni_compression._calls import known_weights
from nni_compression._calls.exchange import LayerExchange, tensor_header
from nni_compression.errors import UnimplementedError

SHAPE = (1200, 1000)  # 4.8 MB: more than one message


def weights(seed: int = 0, layers: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {f"fc{i}": random.standard_normal(SHAPE, dtype=np.float32) for i in range(layers)}


def bind(client: nc.Client, algorithm: str = "level", rule: object = None, layers: int = 2):
    bound = [nc.Layer(name=f"fc{i}", op_type="Linear", shape=SHAPE) for i in range(layers)]
    rule = {"sparsity": 0.5} if rule is None else rule
    return client.bind_model(algorithm, [rule], layers=bound, framework="pytorch")


def masks_of(session, arrays):
    return {name: mask.to_numpy() for name, mask in session.calc_mask(arrays).items()}


def keep(client: nc.Client, arrays: dict[str, np.ndarray]) -> None:
    """Sends weights, and waits until the server has hashed them."""
    with bind(client, layers=len(arrays)) as session:
        masks_of(session, arrays)
        exchange = [
            tensor_header(name, nc.Tensor.of(array, name), i)
            for i, (name, array) in enumerate(arrays.items())
        ]
        prints = [known_weights.fingerprint(request) for request in exchange]
        for _ in range(10_000):
            request = nc._wire.compression_pb2.FindWeightsRequest(
                session_id=session.id, fingerprints=prints
            )
            reply = session._caller.unary(
                "FindWeights", request, nc._wire.compression_pb2.FindWeightsResponse, None
            )
            if all(reply.may_have):
                return
    raise AssertionError("the server does not keep the weights")


def sent_by(session, call) -> int:
    before = session.stats.bytes_sent
    call()
    return session.stats.bytes_sent - before


def test_a_second_session_of_the_same_weights_sends_none_of_them(client):
    arrays = weights(1)
    keep(client, arrays)
    with bind(client, rule={"sparsity": 0.8}) as session:
        sent = sent_by(session, lambda: masks_of(session, arrays))
    assert sent < 2000


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 1.0])
def test_masks_of_known_weights_are_those_of_sent_ones(client, sparsity):
    arrays = weights(2)
    keep(client, arrays)
    with bind(client, rule={"sparsity": sparsity}) as known:
        found = masks_of(known, arrays)
        assert known.stats.bytes_sent < 2000
    for name, array in arrays.items():
        order = np.argsort(np.abs(array).reshape(-1), kind="stable")
        expected = np.ones(array.size, dtype=bool)
        expected[order[: int(array.size * sparsity)]] = False
        assert np.array_equal(found[name].reshape(-1), expected)


def test_codes_of_known_weights_are_those_of_sent_ones(client):
    arrays = weights(3)
    with bind(client, "qat", {"quant_bits": 8}) as session:
        sent = session.quantize_weight(arrays)
    keep(client, arrays)
    with bind(client, "qat", {"quant_bits": 8}) as session:
        known = session.quantize_weight(arrays)
        assert session.stats.bytes_sent < 2000
    for name in arrays:
        assert np.array_equal(known[name].codes, sent[name].codes)
        assert known[name].scale == sent[name].scale


def test_a_change_that_no_sample_sees_is_seen(client):
    arrays = weights(4)
    keep(client, arrays)
    changed = {name: array.copy() for name, array in arrays.items()}
    flat = changed["fc0"].reshape(-1)
    place = 2 * 146 + 2  # right after a sampled word
    flat[place] = 100.0
    request = tensor_header("fc0", nc.Tensor.of(changed["fc0"], "fc0"), 0)
    before = tensor_header("fc0", nc.Tensor.of(arrays["fc0"], "fc0"), 0)
    assert known_weights.fingerprint(request) == known_weights.fingerprint(before)
    assert known_weights.digests([request]) != known_weights.digests([before])
    with bind(client, rule={"sparsity": 0.9}) as session:
        assert masks_of(session, changed)["fc0"].reshape(-1)[place]


def test_a_weight_that_the_server_let_go_of_is_sent(client, monkeypatch):
    arrays = weights(5)
    with bind(client) as session:
        monkeypatch.setattr(
            session,
            "_find_weights",
            lambda exchange, timeout: exchange.learn([True] * len(exchange.question())),
        )
        found = masks_of(session, arrays)
        assert session.stats.bytes_sent > sum(array.nbytes for array in arrays.values())
    with bind(client) as session:
        expected = masks_of(session, arrays)
    for name in arrays:
        assert np.array_equal(found[name], expected[name])


def test_an_older_server_is_asked_once(client, monkeypatch):
    asked = []
    with bind(client, layers=4) as session:
        unary = session._caller.unary

        def old(method, *arguments, **options):
            if method == "FindWeights":
                asked.append(method)
                raise UnimplementedError("unknown method")
            return unary(method, *arguments, **options)

        monkeypatch.setattr(session._caller, "unary", old)
        arrays = weights(6, layers=4)
        for names in (("fc0", "fc1"), ("fc2", "fc3")):
            assert len(masks_of(session, {name: arrays[name] for name in names})) == 2
    assert asked == ["FindWeights"]


def test_weights_that_train_are_not_asked_for(client, monkeypatch):
    asked = []
    learn = LayerExchange.learn

    def spy(exchange, may_have):
        asked.append(len(may_have))
        learn(exchange, may_have)

    monkeypatch.setattr(LayerExchange, "learn", spy)
    with bind(client, "qat", {"quant_bits": 8}) as session:
        for seed in range(3):
            session.quantize_weight(weights(seed))
    assert asked == [2], "the first time only"
    agp = {"final_sparsity": 0.8, "end_epoch": 5}
    with bind(client, "agp", agp) as session:
        for epoch in range(3):
            session.update_epoch(epoch)
            session.calc_mask(weights(epoch + 3))
    assert asked == [2, 2]


def test_a_small_model_pays_no_question(client):
    arrays = {"fc0": np.ones((100, 100), dtype=np.float32)}
    layer = nc.Layer(name="fc0", op_type="Linear", shape=(100, 100))
    with client.bind_model("level", [{"sparsity": 0.5}], layers=[layer]) as session:
        exchange = [tensor_header("fc0", nc.Tensor.of(arrays["fc0"], "fc0"), 0)]
        assert known_weights.worth_asking(exchange) == []
        assert session.calc_mask(arrays)["fc0"].sparsity == 0.5


def test_a_hundred_sessions_of_one_model_send_it_about_once(client):
    arrays = weights(8)
    size = sum(array.nbytes for array in arrays.values())
    keep(client, arrays)
    before = client.stats.bytes_sent
    masks = {}
    for i in range(100):
        with bind(client, rule={"sparsity": i / 100}) as session:
            masks[i] = session.calc_mask(arrays)["fc0"].sparsity
    assert client.stats.bytes_sent - before < 0.05 * size
    elements = arrays["fc0"].size
    assert masks == {i: int(elements * (i / 100)) / elements for i in range(100)}
