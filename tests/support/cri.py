"""Kubernetes' container runtime interface, as the kubelet calls it; compiled from ``protos/tests``."""

import importlib
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

PROTOS = Path(__file__).parent.parent.parent / "protos" / "tests"
CALL_TIMEOUT_S = 60.0
_NODE = 2  # NamespaceMode: that of the machine, so that no network has to be set up


class Kubelet:
    """The calls that bring up a pod, one short method each.

    Args:
        socket: containerd's.
        folder: where generated modules may be put.
    """

    def __init__(self, socket: Path, folder: Path) -> None:
        protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
        out = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
        assert protoc.main(["protoc", f"--proto_path={PROTOS}", *out, "cri.proto"]) == 0
        sys.path.insert(0, str(folder))
        try:
            self._messages = importlib.import_module("cri_pb2")
            stubs = importlib.import_module("cri_pb2_grpc")
        finally:
            sys.path.remove(str(folder))
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._images = stubs.ImageServiceStub(self._channel)
        self._runtime = stubs.RuntimeServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def pull(self, image: str) -> str:
        request = self._messages.PullImageRequest(image={"image": image})
        return str(self._images.PullImage(request, timeout=CALL_TIMEOUT_S).image_ref)

    def remove_image(self, image: str) -> None:
        self._images.RemoveImage(self._messages.RemoveImageRequest(image={"image": image}), timeout=CALL_TIMEOUT_S)

    def sandbox(self, name: str, logs: Path) -> "Pod":
        """Run the sandbox of a pod."""
        context = {"namespace_options": {"network": _NODE}}
        config = self._messages.PodSandboxConfig(
            metadata={"name": name, "uid": name, "namespace": "tests"},
            log_directory=str(logs),
            linux={"security_context": context},
        )
        request = self._messages.RunPodSandboxRequest(config=config)
        return Pod(self, config, self._runtime.RunPodSandbox(request, timeout=CALL_TIMEOUT_S).pod_sandbox_id)

    def call(self, method: str, request: str, **fields: Any) -> Any:  # noqa: ANN401  # generated messages
        """Call *method* of the runtime service with the message *request*."""
        return getattr(self._runtime, method)(getattr(self._messages, request)(**fields), timeout=CALL_TIMEOUT_S)


class Pod:
    """A sandbox that runs, and containers in it."""

    def __init__(self, kubelet: Kubelet, config: Any, identity: str) -> None:  # noqa: ANN401
        self._kubelet = kubelet
        self._config = config
        self._identity = identity

    def start(self, name: str, image: str, *command: str) -> str:
        """Create and start a container; gives its identity."""
        container = {
            "metadata": {"name": name},
            "image": {"image": image},
            "command": command,
            "log_path": f"{name}.log",
        }
        made = self._kubelet.call(
            "CreateContainer",
            "CreateContainerRequest",
            pod_sandbox_id=self._identity,
            config=container,
            sandbox_config=self._config,
        )
        identity = str(made.container_id)
        self._kubelet.call("StartContainer", "StartContainerRequest", container_id=identity)
        return identity

    def output(self, container: str, *command: str) -> str:
        """What *command* prints in a container that runs."""
        done = self._kubelet.call("ExecSync", "ExecSyncRequest", container_id=container, cmd=command, timeout=30)
        assert done.exit_code == 0, done.stderr
        return str(done.stdout.decode())

    def remove(self) -> None:
        """Stop and remove the pod with its containers."""
        for method in ("StopPodSandbox", "RemovePodSandbox"):
            self._kubelet.call(method, f"{method}Request", pod_sandbox_id=self._identity)
