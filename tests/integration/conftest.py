"""A real server that all tests share, named in the environment as a user would."""

import os

import pytest

import attacked
import servers


@pytest.fixture(scope="session")
def server_address():
    """HOST:PORT of a running server; the environment of the tests names it."""
    with servers.ServerProcess() as server:
        os.environ["NNI_COMPRESSION_SERVER"] = server.address
        yield server.address
        assert server.stop() == 0, "the server did not drain"


@pytest.fixture(scope="module")
def target():
    """A server to be attacked."""
    with attacked.Attacked() as server:
        yield server


@pytest.fixture
def hasty():
    """One that has soon enough of a peer that stands still."""
    with attacked.Attacked("--stall_timeout=5s") as server:
        yield server
