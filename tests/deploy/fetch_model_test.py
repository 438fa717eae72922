#!/usr/bin/env python3
"""Runs the init container's fetch_model.py against a small Hub on the loopback.

The Hub here answers as https://huggingface.co/docs/hub/api describes: the model's files with their
sizes and hashes, then each file, large ones by a redirect to another address. Its bytes and hashes
are made here, independently of the script. Run it with Python alone: tests/deploy/fetch_model_test.py
"""
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import unittest

SCRIPT = (pathlib.Path(__file__).resolve().parents[2] /
          "deploy/k8s/components/model-pvc/fetch_model.py")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = {"config.json": b'{"a": 1}\n', "tokenizer.json": b"{}\n", "1_Pooling/config.json": b"{}",
         "README.md": b"not wanted", "onnx/model.json": b"not wanted either"}
LARGE = {"model.safetensors": bytes(range(256)) * 20000, "pytorch_model.bin": b"not wanted"}
WANTED = {"config.json", "tokenizer.json", "1_Pooling/config.json", "model.safetensors"}


def siblings() -> list[dict]:
    listed = [{"rfilename": name, "size": len(data),
               "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
              for name, data in SMALL.items()]
    return listed + [{"rfilename": name, "size": len(data), "blobId": "0" * 40,
                      "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data),
                              "pointerSize": 135}} for name, data in LARGE.items()]


class Hub(http.server.ThreadingHTTPServer):
    """Serves the model; `break_once` cuts the large file's first answer, `spoil` flips a byte."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict]] = []
        self.break_once = self.spoil = self.gated = False
        self.files = siblings()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, code: int, data: bytes = b"", **headers: str):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.server.break_once and self.path.startswith("/cdn/"):
            self.server.break_once = False
            self.wfile.write(data[:len(data) // 3])
            self.close_connection = True
            return
        self.wfile.write(data)

    def do_GET(self):
        hub = self.server
        hub.requests.append((self.path, dict(self.headers)))
        resolve = f"/org/small/resolve/{COMMIT}/"
        if hub.gated and not self.path.startswith("/cdn/") and \
                self.headers.get("Authorization") != "Bearer hf_secret":
            self.answer(401)
        elif self.path == "/api/models/org/small/revision/main?blobs=true":
            self.answer(200, json.dumps({"sha": COMMIT, "siblings": hub.files}).encode())
        elif self.path.startswith(resolve) and self.path.removeprefix(resolve) in SMALL:
            self.answer(200, SMALL[self.path.removeprefix(resolve)])
        elif self.path.startswith(resolve) and self.path.removeprefix(resolve) in LARGE:
            self.answer(302, Location=f"{hub.url}/cdn/{self.path.removeprefix(resolve)}")
        elif self.path.startswith("/cdn/"):
            data = LARGE[self.path.removeprefix("/cdn/")]
            if hub.spoil:
                data = b"\xff" + data[1:]
            start = int(self.headers.get("Range", "bytes=0-")[len("bytes="):-1])
            self.answer(206 if start else 200, data[start:])
        else:
            self.answer(404)


class FetchModelTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.model = self.folder / "org/small/main"
        self.hub = Hub()
        self.addCleanup(self.hub.server_close)
        self.addCleanup(self.hub.shutdown)

    def start(self, **environment: str) -> subprocess.Popen:
        # No pauses between attempts: the script's constants are what is under test least.
        code = f"import runpy, sys, time; time.sleep = lambda _: None; sys.argv = ['fetch_model.py', " \
               f"{str(self.folder)!r}]; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True,
                                env={**os.environ, "MODEL_REPO": "org/small", "MODEL_REVISION": "main",
                                     "HUB_ENDPOINT": self.hub.url, "no_proxy": "*", **environment})

    def run_script(self, **environment: str) -> tuple[int, str]:
        process = self.start(**environment)
        output = process.communicate(timeout=60)[0]
        return process.returncode, output

    def expect_model(self):
        files = {path.relative_to(self.model).as_posix(): path.read_bytes()
                 for path in self.model.rglob("*") if path.is_file()}
        self.assertEqual(set(files), WANTED)
        for name, data in files.items():
            self.assertEqual(data, {**SMALL, **LARGE}[name], name)

    def test_fetches_what_the_server_reads(self):
        code, output = self.run_script()
        self.assertEqual(code, 0, output)
        self.expect_model()

    def test_does_nothing_when_it_is_there(self):
        self.run_script()
        before = len(self.hub.requests)
        code, output = self.run_script()
        self.assertEqual((code, len(self.hub.requests)), (0, before), output)

    def test_goes_on_where_it_broke_off(self):
        self.hub.break_once = True
        code, output = self.run_script()
        self.assertEqual(code, 0, output)
        self.expect_model()
        ranges = [headers["Range"] for path, headers in self.hub.requests
                  if path.startswith("/cdn/") and "Range" in headers]
        self.assertEqual(len(ranges), 1, output)
        self.assertNotEqual(ranges[0], "bytes=0-")

    def test_refuses_other_bytes(self):
        self.hub.spoil = True
        code, output = self.run_script()
        self.assertEqual(code, 1, output)
        self.assertIn("hash", output)
        self.assertFalse(self.model.exists())

    def test_sends_the_token_to_the_hub_alone(self):
        self.hub.gated = True
        code, output = self.run_script()
        self.assertEqual(code, 1, output)
        self.assertIn("401", output)
        self.assertEqual(len(self.hub.requests), 1, "a refusal is final")
        token = self.folder / "token"
        token.write_text("hf_secret\n")
        code, output = self.run_script(HUB_TOKEN_FILE=str(token))
        self.assertEqual(code, 0, output)
        self.expect_model()
        self.assertNotIn("hf_secret", output)
        redirected = [headers for path, headers in self.hub.requests if path.startswith("/cdn/")]
        self.assertTrue(redirected)
        self.assertFalse([headers for headers in redirected if "Authorization" in headers])

    def test_pods_take_turns(self):
        processes = [self.start() for _ in range(3)]
        outputs = [process.communicate(timeout=60)[0] for process in processes]
        self.assertEqual([process.returncode for process in processes], [0, 0, 0], outputs)
        self.expect_model()
        fetched = [path for path, _ in self.hub.requests if path.startswith("/cdn/")]
        self.assertEqual(fetched, ["/cdn/model.safetensors"])

    def test_refuses_names_that_lead_outside(self):
        self.hub.files = [*siblings(), {"rfilename": "../evil.json", "size": 1, "blobId": "0" * 40}]
        code, output = self.run_script()
        self.assertEqual(code, 0, output)  # not wanted: it is in no folder that the server reads
        self.assertFalse(list(self.folder.rglob("evil.json")))
        code, output = self.run_script(MODEL_REPO="../../etc")
        self.assertEqual(code, 2, output)

    def test_refuses_a_model_without_weights(self):
        self.hub.files = [file for file in siblings() if not file["rfilename"].endswith("safetensors")]
        code, output = self.run_script()
        self.assertEqual(code, 1, output)
        self.assertIn("safetensors", output)


if __name__ == "__main__":
    unittest.main()
