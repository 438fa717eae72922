#!/usr/bin/env python3
"""Runs examples/python against the real server.

    python_example_test.py FERRITE_SERVER

Exits with 77, which ctest takes for skipped, where no Python with grpcio is at hand.
"""
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "python"
NEEDED = "import grpc, google.protobuf"
SKIPPED = 77


def python_with_grpc():
    # The distribution's packages are its own interpreter's, which need not be the first on PATH.
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            if subprocess.run([python, "-c", NEEDED], capture_output=True).returncode == 0:
                return python
        except OSError:
            pass
    return None


class Server:
    """The server on the embedded model."""

    def __init__(self, binary):
        self._process = subprocess.Popen(
            [
                binary,
                f"--model.path={ROOT / 'models' / 'stories260k'}",
                "--server.listen=127.0.0.1:0",
                "--server.drain_grace_seconds=0",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.address = None
        for line in self._process.stderr:
            port = re.search(r" ready .*\bport=(\d+)", line)
            if port:
                self.address = f"127.0.0.1:{port.group(1)}"
                break
            sys.stderr.write(line)

    def stop(self):
        self._process.terminate()
        self._process.communicate(timeout=60)
        return self._process.returncode


class ExampleTest(unittest.TestCase):
    binary = ""

    @classmethod
    def setUpClass(cls):
        cls.server = Server(cls.binary)
        assert cls.server.address, "the server did not become ready"

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0

    def run_example(self, name, *arguments, succeeds=True):
        done = subprocess.run(
            [sys.executable, EXAMPLES / name, "--server", self.server.address, *arguments],
            capture_output=True,
            text=True,
            timeout=100,
        )
        self.assertEqual(done.returncode == 0, succeeds, done.stdout + done.stderr)
        return done

    def load(self):
        done = self.run_example("generic.py", "ferrite.v1.Control/GetLoad")
        return json.loads(done.stdout)["workers"][0]

    def test_streams_what_generate_answers(self):
        whole = self.run_example("client.py", "generate", "Tom and Lily")
        self.assertIn("64 completion tokens, FINISH_REASON_LENGTH", whole.stderr)
        self.assertGreater(len(whole.stdout), 100)
        pieces = self.run_example("client.py", "stream", "Tom and Lily")
        self.assertEqual(pieces.stdout, whole.stdout)
        self.assertIn("request ", pieces.stderr)
        retried = self.run_example("client.py", "retry", "Tom and Lily")
        self.assertEqual(retried.stdout, whole.stdout)

    def test_embeds(self):
        lines = self.run_example("client.py", "embed", "A red ball.").stdout.splitlines()
        self.assertEqual(lines[0], "64 values, cosine 1.0000: A red ball.")
        cosines = [float(re.search(r"cosine (\S+):", line).group(1)) for line in lines]
        self.assertEqual(len(cosines), 3)
        self.assertGreater(cosines[1], cosines[2])

    def test_cancels(self):
        # The whole answer may have come before the cancellation: rarely, so ask again.
        outcomes = {self.run_example("client.py", "cancel").stdout.strip() for _ in range(3)}
        self.assertIn("CANCELLED", outcomes)
        self.assertLessEqual(outcomes, {"CANCELLED", "OK"})
        for _ in range(300):
            load = self.load()
            if load.get("requests_running", 0) == 0:
                break
            time.sleep(0.1)
        self.assertEqual(load.get("requests_running", 0), 0)

    def test_has_deadlines(self):
        self.assertEqual(self.run_example("client.py", "deadline").stdout, "DEADLINE_EXCEEDED\n")

    def test_names_what_fails(self):
        done = self.run_example("client.py", "generate", "", succeeds=True)
        self.assertGreater(len(done.stdout), 100)  # an empty text is a BOS
        done = self.run_example("client.py", "generate", "x" * 4000, succeeds=False)
        self.assertIn("INVALID_ARGUMENT: ", done.stderr)

    def test_reflection_alone_is_enough(self):
        methods = self.run_example("generic.py").stdout.splitlines()
        for method in ("Inference/Generate", "Inference/Embed", "Control/Abort"):
            self.assertIn(f"ferrite.v1.{method}", methods)
        request = (
            '{"text": "Tom and Lily", "sampling": {"temperature": 0},'
            ' "stopping": {"max_new_tokens": 64}}'
        )
        answer = json.loads(
            self.run_example("generic.py", "ferrite.v1.Inference/Generate", request).stdout
        )
        expected = self.run_example("client.py", "generate", "Tom and Lily").stdout
        self.assertEqual(answer["choices"][0]["text"] + "\n", expected)
        lines = self.run_example(
            "generic.py", "ferrite.v1.Inference/GenerateStream", request
        ).stdout.splitlines()
        self.assertEqual(list(json.loads(lines[0])), ["started"])
        self.assertEqual(list(json.loads(lines[-1])), ["finished"])
        done = self.run_example(
            "generic.py", "ferrite.v1.Inference/Generate", '{"txet": "x"}', succeeds=False
        )
        self.assertIn("txet", done.stderr)


class RetryTest(unittest.TestCase):
    """The example's retries, against a server that refuses as it is told to."""

    def setUp(self):
        sys.path.insert(0, str(EXAMPLES))
        import client
        import grpc

        self.client = client
        self.refusals = []  # of the next calls: code and trailers
        self.calls = 0
        self.pauses = []
        test = self

        class Servicer(client.inference_grpc.InferenceServicer):
            def Generate(self, request, context):
                test.calls += 1
                if test.refusals:
                    code, trailers = test.refusals.pop(0)
                    context.set_trailing_metadata(trailers)
                    context.abort(code, "refused")
                return client.inference.GenerateResponse()

        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=1))
        client.inference_grpc.add_InferenceServicer_to_server(Servicer(), self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()
        options = [("grpc.enable_http_proxy", 0)]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
        self.codes = grpc.StatusCode
        self.sleep = time.sleep
        client.time.sleep = self.pauses.append

    def tearDown(self):
        self.client.time.sleep = self.sleep
        self.channel.close()
        self.server.stop(None)

    def advice(self, milliseconds):
        """As server/status_mapping.cc gives it."""
        info = self.client.error_details.RetryInfo()
        info.retry_delay.FromMilliseconds(milliseconds)
        details = self.client.status.Status(code=8, message="refused")
        details.details.add().Pack(info)
        return (
            ("grpc-status-details-bin", details.SerializeToString()),
            ("grpc-retry-pushback-ms", str(milliseconds)),
        )

    def call(self):
        stub = self.client.inference_grpc.InferenceStub(self.channel)
        return self.client.with_retry(
            lambda: stub.Generate(self.client.request_for("x"), timeout=60)
        )

    def test_waits_as_the_server_says(self):
        exhausted = self.codes.RESOURCE_EXHAUSTED
        self.refusals = [
            (exhausted, self.advice(2000)),
            (exhausted, self.advice(500)[1:]),  # no details, as from a proxy that drops them
        ]
        self.call()
        self.assertEqual(self.calls, 3)
        self.assertEqual(len(self.pauses), 2)
        self.assertTrue(2.0 <= self.pauses[0] <= 3.0, self.pauses)
        self.assertTrue(0.5 <= self.pauses[1] <= 0.75, self.pauses)

    def test_waits_longer_and_longer_for_a_server_that_is_away(self):
        self.refusals = [(self.codes.UNAVAILABLE, ())] * 3
        self.call()
        self.assertEqual(self.calls, 4)
        self.assertEqual(self.pauses, sorted(self.pauses))

    def test_does_not_repeat_what_cannot_help(self):
        import grpc

        for code in (self.codes.RESOURCE_EXHAUSTED, self.codes.INVALID_ARGUMENT):
            self.calls = 0
            self.refusals = [(code, ())]  # without advice: too large a message
            with self.assertRaises(grpc.RpcError):
                self.call()
            self.assertEqual(self.calls, 1)
        self.refusals = [(self.codes.UNAVAILABLE, ())] * 100
        self.calls = 0
        with self.assertRaises(grpc.RpcError):
            self.call()
        self.assertEqual(self.calls, 6)


def main():
    python = python_with_grpc()
    if python is None:
        print("skipped: no Python with grpcio (Debian, Ubuntu: python3-grpcio)")
        return SKIPPED
    if python != sys.executable:
        os.execv(python, [python, *sys.argv])
    ExampleTest.binary = sys.argv.pop(1)
    unittest.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
