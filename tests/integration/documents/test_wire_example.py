"""The example of the wire protocol's page, sent as it stands to a real server."""

import grpc

import documents
import nni_compression as nc
from nni_compression._wire import compression_pb2 as pb

PAGE = documents.ROOT / "docs/wire-protocol.md"
SESSION = b"0123456789abcdef0123456789abcdef"


def example(name):
    """The bytes of the block: two hexadecimal digits each, up to the remark."""
    ((_, text),) = documents.blocks(PAGE, name)
    found = bytearray()
    for line in text.splitlines():
        for word in line.split():
            if len(word) != 2 or set(word) - set("0123456789abcdef"):
                break
            found += bytes.fromhex(word)
    return bytes(found)


def call(address, route, request):
    """CalcMask with one raw message; the raw replies."""
    with grpc.insecure_channel(address) as channel:
        method = channel.stream_stream("/nni.compression.v1.CompressionService/CalcMask")
        return list(method(iter([request]), metadata=[("nni-route", route)], timeout=60))


def test_the_request_parses_as_the_remarks_say():
    request = pb.CalcMaskRequest.FromString(example("request"))
    assert request.open.session_id.encode() == SESSION
    (header,), (chunk,), (commit,) = request.headers, request.chunks, request.commits
    assert (header.layer, header.role, header.dtype) == (
        "fc",
        pb.TENSOR_ROLE_WEIGHT,
        pb.DATA_TYPE_FLOAT32,
    )
    assert list(header.shape) == [2, 2]
    assert len(chunk.payload) == header.byte_length == commit.byte_length == 16
    assert commit.crc32 == 0x004A973B


def test_a_server_answers_the_request_with_the_reply(server_address):
    layers = [nc.Layer(name="fc", op_type="Linear", shape=(2, 2))]
    with (
        nc.Client(server_address) as client,
        client.bind_model(
            "level", [{"sparsity": 0.5}], layers=layers, framework="pytorch"
        ) as session,
    ):
        request = example("request").replace(SESSION, session.id.encode())
        reply = pb.CalcMaskResponse()
        for message in call(server_address, "route-of-the-example", request):
            reply.MergeFromString(message)
    reply.commits[0].ClearField("crc32")  # a server may add it
    assert reply == pb.CalcMaskResponse.FromString(example("reply"))


def test_a_flipped_bit_of_the_payload_is_data_loss(server_address):
    layers = [nc.Layer(name="fc", op_type="Linear", shape=(2, 2))]
    with (
        nc.Client(server_address) as client,
        client.bind_model(
            "level", [{"sparsity": 0.5}], layers=layers, framework="pytorch"
        ) as session,
    ):
        request = example("request").replace(SESSION, session.id.encode())
        request = request.replace(b"\x80\x3f", b"\x81\x3f")
        try:
            call(server_address, "route-of-the-example", request)
            status = None
        except grpc.RpcError as error:
            status = error.code()
    assert status == grpc.StatusCode.DATA_LOSS
