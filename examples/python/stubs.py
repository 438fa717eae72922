"""The Python classes of proto/, generated when this module is imported.

Uses grpc_tools (pip install grpcio-tools) if it is there, and otherwise protoc with its plugin
grpc_python_plugin (Debian and Ubuntu: protobuf-compiler, protobuf-compiler-grpc). A project of your
own would generate them once, at build time, with the same command.
"""
import atexit
import importlib
import pathlib
import shutil
import subprocess
import sys
import tempfile

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
FILES = [
    "ferrite/v1/inference.proto",
    "ferrite/v1/control.proto",
    "google/rpc/status.proto",
    "google/rpc/error_details.proto",
]


def compiler():
    """The command that compiles, and what it needs to know of its plugin."""
    try:
        import grpc_tools.protoc

        well_known = pathlib.Path(grpc_tools.protoc.__file__).parent / "_proto"
        return [sys.executable, "-m", "grpc_tools.protoc", f"-I{well_known}"]
    except ImportError:
        plugin = shutil.which("grpc_python_plugin")
        if shutil.which("protoc") is None or plugin is None:
            sys.exit("neither grpc_tools nor protoc with grpc_python_plugin is installed")
        return ["protoc", f"--plugin=protoc-gen-grpc_python={plugin}"]


def generate():
    folder = tempfile.mkdtemp(prefix="ferrite-stubs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command = compiler() + [f"-I{PROTO}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    subprocess.run(command + FILES, check=True)
    sys.path.insert(0, folder)
    import google  # protobuf's package, which must find google.rpc too

    rpc = str(pathlib.Path(folder) / "google")
    if rpc not in google.__path__:
        google.__path__.append(rpc)


generate()
inference = importlib.import_module("ferrite.v1.inference_pb2")
inference_grpc = importlib.import_module("ferrite.v1.inference_pb2_grpc")
control = importlib.import_module("ferrite.v1.control_pb2")
control_grpc = importlib.import_module("ferrite.v1.control_pb2_grpc")
status = importlib.import_module("google.rpc.status_pb2")
error_details = importlib.import_module("google.rpc.error_details_pb2")
