"""docker/: the files are what their schemas and linters ask for, and hold what keeps a cluster closed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def services() -> dict:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]


@pytest.fixture(scope="module")
def job() -> dict:
    return next(d for d in yaml.safe_load_all((DOCKER / "rayjob.yaml").read_text()) if d["kind"] == "RayJob")


def pods(job: dict) -> list[dict]:
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def checked(*command: str) -> None:
    done = subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_file_is_of_its_schema():
    checked("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker/compose.yaml")


def test_the_linter_has_nothing_to_say_of_the_dockerfile():
    checked("hadolint", "docker/Dockerfile")


def test_no_port_is_published_and_the_dashboard_listens_on_the_heads_loopback(services):
    assert not [name for name, service in services.items() if "ports" in service]
    assert "--dashboard-host=127.0.0.1" in services["head"]["command"]
    assert services["submitter"]["network_mode"] == "service:head"
    assert services["submitter"]["environment"]["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:8265"


def test_every_container_asks_for_a_token_and_no_file_holds_one(services, job):
    for name, service in services.items():
        environment = service["environment"]
        assert environment["RAY_AUTH_MODE"] == "token", name
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?"), name
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    lines = (DOCKER / "example.env").read_text().splitlines()
    assert "RAY_AUTH_TOKEN=" in lines, "the example must leave the token empty"
    assert "docker/.env" in (ROOT / ".gitignore").read_text().splitlines()
    for path in DOCKER.iterdir():
        assert not re.search(r"\b[0-9a-f]{32,}\b", path.read_text()), f"{path.name} holds what looks like a secret"


def test_nobody_is_root_and_nobody_gains_rights(services, job):
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["10001:10001"]
    assert not [line for line in lines[lines.index("USER 10001:10001") :] if line.startswith(("RUN ", "COPY ", "ADD "))]
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")
    for pod in pods(job):
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"]


def test_the_image_holds_the_pinned_versions_torch_first_and_only_what_is_named():
    text = (DOCKER / "Dockerfile").read_text()
    installs = re.findall(r"pip install ([^;&\\]*)", text)
    assert len(installs) == 3
    assert installs[0].startswith(installs[1].strip())  # torch, of the CPU index or of the default one
    assert "-c constraints.txt" in installs[2]
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    allowed = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert allowed[0] == "*"
    copied = {source for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for source in line.split()}
    assert copied == {line[1:] for line in allowed if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)


def test_versions_of_ray_agree(job):
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]


def test_the_submitter_waits_for_healthy_nodes_and_runs_the_demo_on_the_volume(services, job):
    assert {"head", "worker"} == set(services["submitter"]["depends_on"])
    assert all(needed["condition"] == "service_healthy" for needed in services["submitter"]["depends_on"].values())
    entrypoint = services["submitter"]["command"][services["submitter"]["command"].index("--") + 1 :]
    assert " ".join(entrypoint).startswith(job["spec"]["entrypoint"])
    for name, service in services.items():
        assert service["volumes"] == ["shared:/srv/influray"], name
    for pod in pods(job):
        assert {"name": "shared", "mountPath": "/srv/influray"} in pod["containers"][0]["volumeMounts"]


def test_gpus_are_a_profile_of_the_same_cluster(services):
    gpu = services["worker-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["build"]["args"] == {"VARIANT": "cuda"}
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert not [name for name, service in services.items() if "profiles" in service and name != "worker-gpu"]
