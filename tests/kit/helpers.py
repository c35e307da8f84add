"""Bots with the helper files of `examples/`: a call gives a future of its reply, or of its error as a dict."""

import importlib.util
import json
import os
import subprocess
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from unittest import mock

from botocore.exceptions import ClientError

from kit.processes import ROOT, environment

PYTHON = ROOT / "examples/python/connect_relay.py"
JAVASCRIPT = ROOT / "examples/node/connect-relay.mjs"
NODE = ROOT / "tests/.node"
_ENVIRONMENT = threading.Lock()


def beside_packages(module):
    """Copies an ES module to the place where its packages are looked for. Another worker may be loading it: it is replaced as
    a whole."""
    with tempfile.NamedTemporaryFile(dir=NODE, delete=False) as copy:
        copy.write(module.read_bytes())
    os.chmod(copy.name, 0o644)
    os.replace(copy.name, NODE / module.name)


class PythonHelper:
    """A bot in this process; each call has a thread of its own."""

    def __init__(self, socket, endpoint, retry_for):
        specification = importlib.util.spec_from_file_location("connect_relay", PYTHON)
        self._module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(self._module)
        with _ENVIRONMENT, mock.patch.dict(os.environ, {"AWS_ENDPOINT_URL_CONNECTPARTICIPANT": endpoint}):
            self._relay = self._module.Relay(socket, "eu-west-2", retry_for=retry_for)
        self._threads = ThreadPoolExecutor(80)

    def send(self, content, token, client_token=None, conversation=None, content_type="text/plain"):
        return self._threads.submit(self._send, content, token, client_token, conversation, content_type)

    def _send(self, *call):
        try:
            return self._relay.send_message(*call)
        except self._module.RelayUnavailable as error:
            return {"Error": "RelayUnavailable", "ClientToken": error.client_token, "Message": str(error)}
        except ClientError as error:
            code = error.response["Error"]["Code"]
            known = getattr(self._relay.exceptions, code, ClientError)
            assert isinstance(error, known), "as `except relay.exceptions.CODE` asks"
            return {"Error": code, "Class": type(error).__name__, "Message": error.response["Error"]["Message"]}
        except (TypeError, ValueError) as error:
            return {"Error": type(error).__name__, "Message": str(error)}

    def close(self):
        self._threads.shutdown()


class NodeHelper:
    """A bot in a process of Node.js: `helper.mjs` passes the calls on."""

    def __init__(self, socket, endpoint, retry_for):
        assert (NODE / "node_modules").is_dir(), "tests/setup installs the packages of examples/package.json into tests/.node"
        beside_packages(JAVASCRIPT)
        beside_packages(ROOT / "tests/kit/helper.mjs")
        options = json.dumps({"socketPath": socket, "region": "eu-west-2", "retryFor": retry_for})
        self._process = subprocess.Popen(
            ["node", NODE / "helper.mjs", options],
            env=environment(AWS_ENDPOINT_URL_CONNECTPARTICIPANT=endpoint),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lock = threading.Lock()
        self._calls = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, content, token, client_token=None, conversation=None, content_type="text/plain"):
        call = {"content": content, "connectionToken": token, "clientToken": client_token, "conversation": conversation}
        call["contentType"] = content_type
        future = Future()
        with self._lock:
            self._calls.append(future)
            self._process.stdin.write(json.dumps({"number": len(self._calls) - 1, **call}) + "\n")
            self._process.stdin.flush()
        return future

    def _read(self):
        for line in self._process.stdout:
            answer = json.loads(line)
            self._calls[answer["number"]].set_result(answer["reply"])
        for call in self._calls:
            if not call.done():
                call.set_exception(AssertionError("the process of Node.js ended before its reply"))

    def close(self):
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=10)
        self._process.stdout.close()
